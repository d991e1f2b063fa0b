"""MultiAligner: adapters of K modalities into one space, with a joint closed-form start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.checks import InputError, check_choice, check_positive
from csaligner.config import FORMAT_VERSION, AdapterConfig, Strict
from csaligner.registry import ADAPTERS, load

from .folder import check_size, read_config, read_weights, write_model
from .hub import HubMixin
from .start import Affine, affine, blank, power


class MultiAlignerConfig(Strict):
    """Architecture of a MultiAligner, stored in config.json. dims: modality -> feature dimensions; encoders:
    modality -> fingerprint of the encoder of the training features, if known."""

    format_version: int = FORMAT_VERSION
    dims: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    dim: Annotated[int, Field(ge=1)]
    adapter: AdapterConfig
    encoders: dict[str, str] = Field(default_factory=dict)


class MultiAligner(nn.Module, HubMixin):
    """K adapters into one space of unit vectors: name -> (N_k, d_k) to name -> (N_k, d).

    logit_scale: 1/temperature of InfoNCE, learned; starts at 1/0.07 as in CLIP. Train with losses.ModalitiesLoss.
    encoders: modality -> fingerprint of the encoder of its features (EncoderInfo.fingerprint), kept in the config.
    """

    def __init__(
        self,
        starts: Mapping[str, Affine],
        config: AdapterConfig | None = None,
        logit_scale: float = 1 / 0.07,
        encoders: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        config = config or AdapterConfig()
        for name in encoders or {}:
            check_choice("encoders", name, starts)
        self.config = MultiAlignerConfig(
            dims={name: len(start.mean) for name, start in starts.items()},
            dim=len(next(iter(starts.values())).offset),
            adapter=config,
            encoders=dict(encoders or {}),
        )
        adapter = load("adapter", ADAPTERS, config.name)
        try:
            self.adapters = nn.ModuleDict({name: adapter(start, config) for name, start in starts.items()})
        except KeyError as error:
            raise InputError(
                f"modality: not a valid torch module name ({error}); use one word of letters and digits"
            ) from None
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(check_positive("logit_scale", logit_scale))))

    @classmethod
    def fit_start(
        cls,
        features: Mapping[str, Tensor],
        ids: Mapping[str, Tensor] | None = None,
        dim: int = 256,
        config: AdapterConfig | None = None,
        encoders: Mapping[str, str] | None = None,
    ) -> MultiAligner:
        """Return an untrained model, initialised with fit_joint_start(features, ids, dim)."""
        return cls(fit_joint_start(features, ids, dim), config, encoders=encoders)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`, atomically."""
        write_model(folder, self.config, self)

    @classmethod
    def load(cls, folder: Path | str) -> MultiAligner:
        """Read a folder written by `save`. Raises InputError if it is missing, damaged or not a MultiAligner."""
        folder = Path(folder)
        config = read_config(MultiAlignerConfig, folder)
        check_size(folder, [(config.adapter, dim) for dim in config.dims.values()], config.dim)
        starts = {name: blank(dim, config.dim) for name, dim in config.dims.items()}
        model = cls(starts, config.adapter, encoders=config.encoders)
        read_weights(folder, model)
        return model.eval()

    @property
    def logit_scale(self) -> Tensor:
        return self.log_logit_scale.exp()

    def encode(self, name: str, x: Tensor) -> Tensor:
        """Encode features of one modality: (N, d_k) -> (N, d) unit vectors."""
        return normalize(self.adapters[name](x), dim=1)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.encode(name, x) for name, x in features.items()}


def fit_joint_start(
    features: Mapping[str, Tensor], ids: Mapping[str, Tensor] | None = None, dim: int = 256, shrinkage: float = 12.0
) -> dict[str, Affine]:
    """Canonical correlations of K sets of variables (MAXVAR, Kettenring 1971): start(x) = (x / |x| - mean) @ map.

    With the shrunk covariances S_k' and their whitened cross-covariances R_kl = S_k'^(-1/2) S_kl S_l'^(-1/2), the
    leading eigenvectors (v_1; ...; v_K) of the block matrix of the R_kl, R_kk = I, are the directions in which all
    modalities agree most; map_k = sqrt(K) S_k'^(-1/2) v_k diag(r), r = (eigenvalue - 1) / (K - 1) the mean correlation,
    at least 0. With two modalities this equals the start "projection" of adapters/start.py.

    features: name -> (N_k, d_k). ids: name -> (N_k,) integers, equal for matching rows; None: row i of every modality
    matches. Only ids present in all modalities are used; several rows of one id are averaged. dim: dimensions of the
    space; shrinkage: weight of the mean eigenvalue in S_k', divided by sqrt(N). Raises InputError.
    """
    points = _matched(features, ids)
    n, k = len(next(iter(points.values()))), len(points)
    means = {name: x.mean(dim=0) for name, x in points.items()}
    centred = {name: x - means[name] for name, x in points.items()}
    whiteners = {name: power(x.T @ x / n, -0.5, shrinkage / math.sqrt(n)) for name, x in centred.items()}
    white = torch.cat([centred[name] @ whiteners[name] for name in points], dim=1)  # (N, sum of d_k)
    blocks = white.T @ white / n
    start = 0
    for x in points.values():
        own = slice(start, start + x.shape[1])
        blocks[own, own] = torch.eye(x.shape[1], dtype=x.dtype)
        start += x.shape[1]
    values, vectors = torch.linalg.eigh(blocks)
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
    agreement = ((values - 1) / (k - 1)).clamp_min(0)
    maps = torch.split(math.sqrt(k) * vectors * agreement, [x.shape[1] for x in points.values()])
    starts = {}
    for (name, x), map_ in zip(points.items(), maps, strict=True):
        missing = dim - map_.shape[1]  # fewer directions than dim: the remaining dimensions start at zero
        starts[name] = affine([x], means[name], torch.nn.functional.pad(whiteners[name] @ map_, (0, missing)))
    return starts


def _matched(features: Mapping[str, Tensor], ids: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return normalised float64 rows, one per id present in all modalities, sorted by id."""
    if len(features) < 2:
        raise InputError(f"features: {len(features)} modalities given, wanted at least 2, by name")
    if ids is None:
        ids = {name: torch.arange(len(x)) for name, x in features.items()}
        if len({len(x) for x in features.values()}) > 1:
            raise InputError("ids: required when the modalities have different numbers of rows")
    common = next(iter(ids.values()))
    for own in ids.values():
        common = common[torch.isin(common, own) & (common >= 0)]
    common = torch.unique(common)
    if len(common) < 2:
        raise InputError(f"ids: {len(common)} are present in all of {', '.join(features)}; wanted at least 2")
    found = {}
    for name, x in features.items():
        rows = torch.isin(ids[name], common)
        place = torch.searchsorted(common, ids[name][rows])
        sums = torch.zeros(len(common), x.shape[1], dtype=torch.float64)
        sums.index_add_(0, place, normalize(x[rows].double(), dim=1))
        found[name] = sums / torch.bincount(place, minlength=len(common))[:, None]
    return found
