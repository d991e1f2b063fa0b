"""`index` on a Ray cluster."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.checks import CSAlignerError
from csaligner.datasets.documents import INDEX_FILE
from csaligner.remote import working_copy
from csaligner.search.build import BuildSettings, build_index
from csaligner.search.index import Index
from csaligner.search.ray_runner import RayRunner

SUPPORT = Path(__file__).parents[1] / "support" / "colours.py"


def make_encoders(support: str, mark: str) -> Any:
    """Return a function for the workers, which do not have the tests in their path. mark: a file; the worker that
    encodes without it creates it and kills itself."""

    def make() -> Any:
        import runpy

        found = runpy.run_path(support)
        images, texts = found["ColourImages"](), found["ColourTexts"]()
        encode = images.encode

        def once(prepared: Any) -> Any:
            if not os.path.exists(mark):
                open(mark, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(prepared)

        images.encode = once
        return images, texts

    return make


def rows(index: Index) -> list[Any]:
    found = index.items.to_arrow(["id", "text", "caption", "owner", "sha256", "vector", "raw"])
    return list(found.to_pylist())


def test_an_index_of_ray_workers_at_a_url_equals_that_of_one_process(
    world: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "fsspec"):
        pytest.importorskip(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    for n in range(70):  # two parts of images
        world.picture(f"{n:03}.png", (n, 255 - n, 3 * n % 256), f"{n} {255 - n} 0")
    (world.folder / "bad.png").write_bytes(b"not an image")
    write("n.txt", "some words")
    one, alone = build_index(str(world.folder), tmp_path / "one", str(world.run), encoders=world.encoders)

    mark = tmp_path / "mark"
    runner = RayRunner(make_encoders(str(SUPPORT), str(mark)), actors=2)
    settings, seen = BuildSettings(ray=runner), list[tuple[int, int]]()
    with working_copy(url, INDEX_FILE) as out:
        _, report = build_index(
            str(world.folder),
            out,
            str(world.run),
            encoders=world.encoders,
            settings=settings,
            progress=lambda done, total: seen.append((done, total)),
        )
    several = Index.open(url, world.encoders)
    assert mark.exists()  # a worker was killed, and its part encoded again
    assert (report, seen[-1][0]) == (alone, seen[-1][1])
    assert report.skipped
    assert rows(several) == rows(one)
    for query in ("0 255 0", "60 195 0"):
        assert several.search(query, k=20) == one.search(query, k=20)
    assert all(torch.equal(several.items.matrix(kind).vectors, one.items.matrix(kind).vectors) for kind in one.kinds())


def test_a_worker_that_keeps_dying_is_reported_in_one_line(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from csaligner.search import ray_runner

    def deadly() -> Any:
        import runpy

        found = runpy.run_path(str(SUPPORT))
        images, texts = found["ColourImages"](), found["ColourTexts"]()
        images.encode = lambda prepared: os.kill(os.getpid(), signal.SIGKILL)
        return images, texts

    monkeypatch.setattr(ray_runner, "RETRIES", 0)
    world.picture("a.png", (1, 2, 3))
    settings = BuildSettings(ray=RayRunner(deadly, actors=1))
    with pytest.raises(CSAlignerError, match="resume") as caught:
        build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders, settings=settings)
    assert "\n" not in str(caught.value)
