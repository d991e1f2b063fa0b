"""Stores and indexes on object storage."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.checks import CSAlignerError, InputError
from csaligner.datasets.documents import INDEX_FILE
from csaligner.remote import RemoteFolder, copy_of, working_copy
from csaligner.search.build import BuildSettings, build_index, delete
from csaligner.search.index import Index
from csaligner.store.embed import embed
from csaligner.store.manifest import MANIFEST
from csaligner.store.store import Store
from tests.support.commands import csaligner


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a local S3 server with the bucket `bucket`."""
    if find_spec("moto") is None or find_spec("flask") is None:
        pytest.skip("needs moto[server]")
    from pyarrow import fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **quiet)  # type: ignore[call-overload]
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "key",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        try:
            _wait_for(address)
            fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True).create_dir("bucket")
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait_for(address: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
            return
        time.sleep(0.1)
    raise TimeoutError(address)


@pytest.fixture(params=["s3://bucket", "memory://"])
def folder(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("s3"):
        request.getfixturevalue("server")
    else:
        pytest.importorskip("fsspec")
    return f"{request.param.rstrip('/')}/{uuid.uuid4().hex}".replace("memory:/", "memory://")


def build(world: Any, url: str, **settings: Any) -> None:
    with working_copy(url, INDEX_FILE) as out:
        build_index(str(world.folder), out, str(world.run), encoders=world.encoders, settings=BuildSettings(**settings))


def test_an_index_on_object_storage_finds_what_a_local_one_finds(
    world: Any, folder: str, tmp_path: Path, cache: Path
) -> None:
    world.many(30)
    local, _ = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)
    build(world, folder)
    index = Index.open(folder, world.encoders)
    assert index.search("200 20 20", k=20) == local.search("200 20 20", k=20)
    if folder.startswith("s3://"):  # LanceDB reads the tables where they are
        assert not list((cache / "csaligner/remote").glob("*/read/copy/*.lance"))
        with pytest.raises(InputError):
            delete(index, ["000"])

    world.picture("new.png", (255, 255, 255))
    (world.folder / "000.png").unlink()
    build(world, folder)
    again = Index.open(folder, world.encoders)
    assert again.search("255 255 255", k=1, only="images")[0].id == "new"
    assert again.row("000") is None
    assert world.images.seen == 30 + 30 + 1  # only the new image was encoded for the update


def test_fused_items_and_raw_vectors_are_read_too(world: Any, server: str) -> None:
    world.many(8)
    build(world, "s3://bucket/fused", fuse=0.5)
    assert Index.open("s3://bucket/fused", world.encoders).items.count("fused") == 8
    build(world, "s3://bucket/raw")
    index = Index.open("s3://bucket/raw", world.encoders)
    assert index.search("9 9 9", k=3, space="centred")


def test_a_store_on_object_storage_is_embedded_updated_and_read(
    folder: str, make_items: Any, listed: Any, image_encoder: Any, text_encoder: Any, tmp_path: Path
) -> None:
    data = listed(make_items(5))
    local = embed(data, image_encoder, text_encoder, tmp_path / "store")
    with working_copy(folder, MANIFEST) as out:
        embed(data, image_encoder, text_encoder, out)
    store = Store.open(folder)
    assert torch.equal(store.features().image, local.features().image)
    assert store.sha256 == local.sha256


def test_an_interrupted_build_uploads_nothing_and_resumes(world: Any, folder: str) -> None:
    world.many(70)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), working_copy(folder, INDEX_FILE) as out:
        build_index(str(world.folder), out, str(world.run), encoders=world.encoders, progress=stop)
    assert RemoteFolder.open(folder).stamps() == {}
    seen = world.images.seen
    build(world, folder)
    assert seen == 64
    assert world.images.seen == 70
    assert len(Index.open(folder, world.encoders)) == 140


def test_a_folder_that_another_process_wrote_is_not_overwritten(
    world: Any, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.many(3)
    build(world, folder)
    with pytest.raises(InputError, match="another process"), working_copy(folder, INDEX_FILE):  # noqa: PT012
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
        world.picture("new.png", (1, 2, 3))
        build(world, folder)
    assert Index.open(folder, world.encoders).row("new") is not None


@pytest.mark.parametrize("url", ["nothing-like-this://bucket/x", "memory://not-there"])
def test_an_unknown_scheme_or_a_missing_folder_is_reported_in_one_line(url: str) -> None:
    pytest.importorskip("fsspec")
    for read in (lambda: Store.open(url), lambda: Index.open(url)):
        with pytest.raises(InputError) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_foreign_files_are_not_replaced_and_an_unreachable_bucket_is_reported(server: str, tmp_path: Path) -> None:
    foreign = tmp_path / "a.txt"
    foreign.write_text("something else", encoding="utf-8")
    RemoteFolder.open("s3://bucket/foreign").upload(foreign, "a.txt")
    with pytest.raises(InputError, match="choose"), working_copy("s3://bucket/foreign", INDEX_FILE):
        pass
    with pytest.raises(CSAlignerError) as caught:
        copy_of("s3://no-such-bucket/x", INDEX_FILE)
    assert "\n" not in str(caught.value)


def test_the_commands_take_urls(world: Any, server: str) -> None:
    world.many(3)
    out = csaligner("embed", "--data", str(world.folder), "--out", "s3://bucket/store", "--workers", "0", "-q")
    assert out.returncode == 0, out.stderr
    assert Store.open("s3://bucket/store").n_images == 3
    assert (
        csaligner("index", "--data", str(world.folder), "--out", "s3://bucket/ix", "--run", "bundled").returncode == 0
    )
    found = csaligner("search", "s3://bucket/ix", "a colour", "--only", "images", "--json")
    assert found.stdout.count('"image"') == 3
    refused = csaligner("index", "--data", str(world.folder), "--out", "s3://bucket/ix", "--runner", "ray")
    assert refused.returncode
    assert "share" in refused.stderr
