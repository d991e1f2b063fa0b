"""Settings of the test session and shared fixtures; helpers are in tests/support."""

from __future__ import annotations

import copy
import functools
import gc
import os

# gRPC, which clients of databases load, writes to stderr at every fork of the process, also in the tests after theirs.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
if "PYTEST_XDIST_WORKER" in os.environ:  # before importing torch: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from filelock import FileLock
from markupsafe import Markup

if not torch.cuda.is_available():  # before importing triton, whose functions are built for one of the two
    os.environ.setdefault("TRITON_INTERPRET", "1")

from csaligner import registry
from tests.support.colours import World, make_world
from tests.support.encoders import FakeImageEncoder, FakeTextEncoder, Listed, MakeItems, make_items
from tests.support.models import make_model

# Typer builds all commands at each call of the program, which takes longer than to refuse wrong arguments.
typer.main.get_command = functools.cache(typer.main.get_command)

# the slowest folders and modules start first, so that the workers end at the same time
FIRST = (
    "faults/",
    "docs/",
    "store/test_parallel",
    "comparison/",
    "test_demo",
    "recipes/",
    "security/",
    "training/",
    "spaces/",
    "selection/",
    "search/",
    "test_model",
    "integrations/",
    "examples/",
    "export/",
    "encoders/",
    "fuzz/",
    "app/",
    "distributed/",
    "inputs/",
    "test_",
)
TESTS = Path(__file__).parent
TOGETHER = ("faults",)  # folders whose modules share costly fixtures
UNDRAWN = ("docs", "encoders", "export", "recipes", "search", "selection", "spaces", "store", "training")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage among the modules that are imported, now or later: it takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter free the modules at its end: what stays frozen, triton reports as leaked."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.relative_to(TESTS).as_posix()))


def _place(module: str) -> int:
    return next((n for n, start in enumerate(FIRST) if module.startswith(start)), len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Number of workers for -n auto: one per available core, limited by memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run each module, and each folder in TOGETHER, on one worker, so that shared fixtures are created once."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # it would put the modules with the fewest tests last, which are the slowest

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            folder = module.split("/")[1]
            return folder if folder in TOGETHER else module

    return ByModule(config, log)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """(name, make) -> folder filled by make(folder), once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        root.mkdir(exist_ok=True)
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_model(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """Family -> folder of a small model, created on first use."""
    pytest.importorskip("transformers")
    return lambda family: once(family, lambda folder: make_model(family, folder))


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of the tests in UNDRAWN have no figures, which take half a second each; the other tests draw them."""
    if request.path.parent.name in UNDRAWN:
        drawing = Markup("<svg></svg>")
        monkeypatch.setattr("csaligner.reporting.figures.map_panels", lambda maps, *_: [drawing] * len(maps))
        monkeypatch.setattr("csaligner.reporting.figures.cosine_panels", lambda samples, _: {})
        monkeypatch.setattr("csaligner.reporting.figures.curve_panels", lambda *_: {})


@pytest.fixture
def registries() -> Iterator[None]:
    """Undo registrations after a test."""
    from csaligner.comparison.methods import TRAINED

    tables = [*(value for value in vars(registry).values() if isinstance(value, registry.Registry)), TRAINED]
    before = [{name: copy.copy(value) for name, value in vars(table).items()} for table in tables]
    yield
    for table, state in zip(tables, before, strict=True):
        vars(table).update(state)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Images of one colour, texts that name one, and an aligner that matches them."""
    return make_world(tmp_path)


@pytest.fixture
def write(world: World) -> Callable[[str, str], Path]:
    """(name, text) -> file in the folder of the world."""
    return world.write


@pytest.fixture(name="make_items")
def items_in_folder(tmp_path: Path) -> MakeItems:
    """n -> items with images in a folder of this test; see tests.support.encoders.make_items."""
    return lambda n: make_items(tmp_path / "pictures", n)


@pytest.fixture
def image_encoder() -> FakeImageEncoder:
    return FakeImageEncoder()


@pytest.fixture
def text_encoder() -> FakeTextEncoder:
    return FakeTextEncoder()


@pytest.fixture
def listed() -> type[Listed]:
    return Listed


@pytest.fixture
def fake_image_encoder() -> type[FakeImageEncoder]:
    return FakeImageEncoder
