"""ONNX graphs of the bundled encoders, run by ONNX Runtime with the installed weights.

The package contains the graphs without weights (tools/encoder_graphs). A session receives the weights from memory, so
that nothing is exported or cached on the user's machine, and neither onnx nor onnxscript is needed.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata as metadata_of
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csaligner.extras import install_command

POOLED = "pooled"  # output with the features
ASSETS = Path("assets") / "encoder-graphs"
TOLERANCE = 1e-5  # of the probe, relative to its largest feature

Arrays = Mapping[str, NDArray[Any]]


class OnnxGraph:
    """One graph with its weights: arrays by name -> arrays.

    Runs on as many threads as torch uses in the calling thread. Thread-safe; copies in other processes make their own
    sessions.
    """

    def __init__(self, model: bytes, weights: Arrays) -> None:
        self._model, self._weights = model, weights
        self._reset()

    def run(self, inputs: Arrays, *outputs: str) -> list[NDArray[Any]]:
        """Return the outputs of these names."""
        found: list[NDArray[Any]] = self._session().run(list(outputs), dict(inputs))
        return found

    def _reset(self) -> None:
        self._sessions: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def _session(self) -> Any:
        import torch

        key = os.getpid(), torch.get_num_threads()  # threads of a session do not survive a fork
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = self._new_session(key[1])
            return self._sessions[key]

    def _new_session(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to decoding
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
        options.add_external_initializers([f"net.{name}" for name in self._weights], values)
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_weights": self._weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def open_graph(name: str, digest: str, weights: Callable[[], Arrays]) -> OnnxGraph | None:
    """Return the graph of that name with the installed weights; None if torch must compute the features: ONNX Runtime
    is not installed, the graph was exported for other weights, or the features of the probe differ from those that
    torch computed in double precision. Torch is two to three times slower, so the reason is given as a warning.

    digest: SHA-256 of the weights; weights: returns them by their names in the network of torch.
    """
    if find_spec("onnxruntime") is None:
        _warn(name, f"onnxruntime is not installed; {install_command('bundled')}")
        return None
    from safetensors import safe_open

    folder = Path(str(resources.files("csaligner"))) / ASSETS
    with safe_open(folder / f"{name}-probe.safetensors", "np") as file:
        metadata = file.metadata() or {}
        probe = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if metadata.get("weights") != digest:
        _warn(name, "its graph was made for other weights; install the version that csaligner names")
        return None
    wanted, found = probe.pop(POOLED), weights()
    graph = OnnxGraph((folder / f"{name}.onnx").read_bytes(), {key: found[key] for key in metadata["names"].split()})
    try:
        if _agree(graph.run(probe, POOLED)[0], wanted):
            return graph
        reason = f"its features of the probe differ from torch's by more than {TOLERANCE:g}"
    except Exception as error:  # of many types, defined by the extension module
        reason = " ".join(str(error).split())[:200]
    version = metadata_of.version("onnxruntime")
    _warn(name, f"ONNX Runtime {version} fails ({reason}); install another version")
    return None


def _warn(name: str, reason: str) -> None:
    warnings.warn(f"encoder: {name} is computed by torch, which is slower: {reason}", stacklevel=4)


def _agree(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max())
