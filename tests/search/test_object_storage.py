"""Stores and indexes on object storage."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csaligner.checks import CSAlignerError, InputError
from csaligner.datasets.documents import INDEX_FILE
from csaligner.model import AlignedModel
from csaligner.remote import RemoteFolder, copy_of, local, working_copy
from csaligner.run_folder import read_record
from csaligner.search.build import BuildSettings, build_index, delete
from csaligner.search.index import Index
from csaligner.spaces.read import read_spaces
from csaligner.store.embed import embed
from csaligner.store.manifest import MANIFEST
from csaligner.store.store import Store
from tests.support.commands import csaligner
from tests.support.features import make_arrays, make_pairs, make_store


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
    refused = csaligner("embed", "--data", str(world.folder), "--out", "s3://bucket/other", "--runner", "ray")
    assert refused.returncode
    assert "share" in refused.stderr


def upload(path: Path, url: str) -> str:
    """Upload a file or a folder, with what its links lead to, as `aws s3 sync` does."""
    if path.is_file():
        folder, _, name = url.rpartition("/")
        RemoteFolder.open(folder).upload(path, name)
    for place, _, names in os.walk(path, followlinks=True):
        for name in names:
            RemoteFolder.open(url).upload(Path(place, name), Path(place, name).relative_to(path).as_posix())
    return url


def ran(*words: object) -> str:
    done = csaligner(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def gap(image: object, text: object) -> str:
    return ran("gap", "--image-features", image, "--text-features", text, "--json")


QUICK = ["epochs=2", "image_adapter.hidden=8", "text_adapter.hidden=8", "start.kind=projection", "gate=false"]
SHARED = "memory://shared"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stores at SHARED, trained on another machine; it is at SHARED/run as well, the store at SHARED/store."""
    pytest.importorskip("fsspec")
    here = tmp_path_factory.mktemp("other machine")
    store = upload(make_store(here / "store", 60, held_out=20), f"{SHARED}/store")
    val = upload(make_store(here / "val", 30, seed=1), f"{SHARED}/val")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        words = ["--val-data", val, "--unpaired-images", val, "--unpaired-texts", val, "-q", *QUICK]
        ran("train", "--train-data", store, "--out", here / "run", *words)
    upload(here / "run", f"{SHARED}/run")
    return here / "run"


def test_train_records_the_urls_of_its_stores(run: Path) -> None:
    record = read_record(run)
    assert record["store"] == f"{SHARED}/store"
    assert [record[name][0]["store"] for name in ("val", "unpaired_images", "unpaired_texts")] == [f"{SHARED}/val"] * 3


def test_eval_writes_the_results_to_the_url_of_the_run_and_nothing_else_is_lost(run: Path, tmp_path: Path) -> None:
    url = upload(run, f"{SHARED}/evaluated")
    ours = json.loads(ran("eval", "--run", url, "--split", "val", "--json"))  # on the store at its URL
    assert ours == json.loads(ran("eval", "--run", run, "--split", "val", "--val-data", f"{SHARED}/store", "--json"))
    note = tmp_path / "note.txt"
    note.write_text("of somebody else", encoding="utf-8")
    upload(note, f"{url}/note.txt")
    again = json.loads(ran("eval", "--run", url, "--json"))
    assert again != ours
    there = local(url)
    assert json.loads((there / "results.json").read_text(encoding="utf-8")) == again
    assert {"note.txt", "report.html", "checkpoints"} <= {path.name for path in there.iterdir()}
    assert (there / "checkpoints/latest/model.safetensors").is_file()


def test_export_and_a_warm_fit_start_from_a_run_at_a_url(run: Path, tmp_path: Path) -> None:
    ran("export", "--run", f"{SHARED}/run", "--out", tmp_path / "exported")
    assert list((tmp_path / "exported").iterdir())
    more = make_store(tmp_path / "more", 40, seed=2)
    words = ["--resume-from", f"{SHARED}/run", "--out", tmp_path / "again", "-q", *QUICK]
    ran("train", "--train-data", more, *words)
    assert Store.open(tmp_path / "again-pairs").n_images == 100


def test_new_rows_are_compared_with_a_run_at_a_url(run: Path, tmp_path: Path) -> None:
    new = make_pairs(40, seed=3)
    for name, rows in (("image", new.image), ("text", new.text)):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    image, text = (upload(tmp_path / f"{name}.npy", f"{SHARED}/new/{name}.npy") for name in ("image", "text"))
    found = json.loads(ran("diagnose", image, text, "--against", f"{SHARED}/run", "--json"))
    assert found == json.loads(ran("diagnose", image, text, "--against", run, "--json"))


def test_a_run_of_named_spaces_at_a_url_is_evaluated_on_a_file_at_a_url(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(120, 4))
    arrays = {name: (shared @ rng.normal(size=(4, 8))).astype(np.float32) for name in ("eeg", "image", "audio")}
    np.savez(tmp_path / "spaces.npz", **arrays)  # type: ignore[arg-type]
    several, out = upload(tmp_path / "spaces.npz", f"{SHARED}/spaces.npz"), tmp_path / "joint"
    ran("train", "--train-data", several, "--out", out, "-q", "epochs=1")
    url = upload(out, f"{SHARED}/joint")
    ours = json.loads(ran("eval", "--run", out, "--json"))
    assert json.loads(ran("eval", "--run", url, "--json")) == ours


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    """Files of 300 pairs and their ids, by name."""
    image, text = make_arrays(300, (8, 8))
    for name, rows in (("image", image), ("text", text), ("both", np.stack([image, text]))):
        np.save(tmp_path / f"{name}.npy", rows)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(300))), encoding="utf-8")
    return {path.name: path for path in tmp_path.iterdir() if path.is_file()}


def test_feature_files_at_urls_are_imported_to_a_url_and_checked_there(
    folder: str, arrays: dict[str, Path], tmp_path: Path
) -> None:
    image, text, ids = (upload(arrays[each], f"{folder}/{each}") for each in ("image.npy", "text.npy", "ids.txt"))
    store = f"{folder}/store"
    words = ["import", "--image-features", image, "--text-features", text, "--image-ids", ids, "--text-image-ids", ids]
    ran(*words, "--out", store)
    assert Store.open(store).n_images == 300
    again = csaligner(*words, "--out", store)
    assert again.returncode == 1
    assert f"{store} exists" in again.stderr

    assert json.loads(ran("check-data", store, "--json"))["problems"] == []
    name = next(each for each in RemoteFolder.open(store).stamps() if each.endswith(".npy"))
    (tmp_path / "damaged").write_bytes((local(store) / name).read_bytes()[:-1] + b"x")
    upload(tmp_path / "damaged", f"{store}/{name}")
    assert name in csaligner("check-data", store).stderr


def test_feature_files_at_urls_are_measured_like_local_ones(arrays: dict[str, Path], tmp_path: Path) -> None:
    url = "memory://measured"
    image, text, both = (upload(arrays[f"{each}.npy"], f"{url}/{each}.npy") for each in ("image", "text", "both"))
    files = (arrays["image.npy"], arrays["text.npy"])
    assert gap(image, text) == gap(*files)
    found = ran("diagnose", image, text, "--json")
    assert found == ran("diagnose", *files, "--json").replace(f"{tmp_path}", url)
    assert image in json.loads(found)["command"]  # the next command names the URL
    assert ran("migrate", image, text, "--json") == ran("migrate", *files, "--json")
    out = tmp_path / "compared"
    ran("compare", "--train-data", both, "--methods", "none", "--seeds", "1", "--jobs", "1", "--out", out, "-q")
    assert json.loads((out / "compare.json").read_text(encoding="utf-8"))["measured"][0]["dataset"] == "both"


def test_a_folder_of_arrays_at_a_url_keeps_its_names(folder: str, arrays: dict[str, Path]) -> None:
    for name in ("image.npy", "text.npy"):
        upload(arrays[name], f"{folder}/spaces/{name}")
    assert [space.name for space in read_spaces([f"{folder}/spaces"])] == ["image", "text"]
    assert local(f"{folder}/spaces").name == "spaces"
    with pytest.raises(InputError, match="no such"):
        local(f"{folder}/spaces/audio.npy")


def test_an_index_at_a_url_is_checked_and_diagnosed(world: Any, folder: str, tmp_path: Path) -> None:
    world.many(30)
    build(world, folder)
    assert json.loads(ran("check-data", folder, "--json"))["problems"] == []
    assert [space.name for space in read_spaces([folder])] == ["image", "text"]
    listed = RemoteFolder.open(folder).stamps()
    table = next(name.partition("/")[0] for name in listed if ".lance/" in name)
    assert local(f"{folder}/{table}").name == table


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--train-data", "store", "--out", "memory://run"],
        ["eval", "--run", "run", "--mixbench", "memory://mixbench"],
        ["embed", "--data", "memory://photos", "--out", "store"],
        ["check-data", "memory://photos"],
        ["index", "--data", "memory://photos", "--run", "bundled", "--out", "index"],
        ["quickstart", "memory://photos"],
        ["search", "index", "--image", "memory://a.png"],
        ["index-export", "index", "--out", "memory://export"],
        ["export", "--run", "run", "--out", "memory://export"],
        ["compare", "--train-data", "a.npy", "--out", "memory://compared"],
        ["migrate", "a.npy", "b.npy", "--out", "memory://adapter"],
        ["diagnose", "a.npy", "b.npy", "--html", "memory://page.html"],
        ["generate", "a cat", "--out", "memory://cat.png"],
        ["recipe", "memory://recipe.yaml"],
        ["demo", "--out", "memory://demo"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_needs_a_path_says_so_in_one_line(words: list[str], tmp_path: Path) -> None:
    done = csaligner(*words, folder=tmp_path)
    assert done.returncode == 1
    assert next(word for word in words if "://" in word) in done.stderr
    assert "traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    is_output = "://" in words[-1] and words[-2] in {"--out", "--html"}
    advice = "upload it afterwards" if is_output else "a folder written" if words[0] == "check-data" else "copy it"
    assert advice in done.stderr
    assert not list(tmp_path.glob("memory*"))


@pytest.mark.parametrize(
    "words",
    [
        ["import", "--image-features", "a.npy", "--text-features", "b.npy", "--out", "s3:/x/y"],
        ["embed", "--data", "openmoji", "--out", "s3:/x/y"],
        ["index", "--data", "openmoji", "--run", "bundled", "--out", "s3:/x/y"],
        ["index", "--data", "s3:/x/y", "--run", "bundled", "--out", "index"],
        ["quickstart", "s3:/x/y"],
        ["eval", "--run", "s3:/x/y"],
        ["export", "--run", "s3:/x/y", "--out", "exported"],
        ["check-data", "s3:/x/y"],
        ["diagnose", "s3:/x/y"],
        ["train", "--train-data", "s3:/x/y", "--out", "run"],
        ["train", "--train-data", "store", "--out", "s3:/x/y"],
        ["search", "s3:/x/y", "a colour"],
    ],
    ids=lambda words: f"{words[0]} {words[1]}",
)
def test_a_url_with_one_slash_is_refused_before_anything_is_written(words: list[str], tmp_path: Path) -> None:
    done = csaligner(*words, folder=tmp_path)
    assert done.returncode == 1
    assert "s3://x/y" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_text_may_look_like_a_url_with_one_slash(world: Any, tmp_path: Path) -> None:
    world.many(3)
    build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)
    assert "did you mean" not in csaligner("search", tmp_path / "ix", "s3:/x").stderr


@pytest.mark.parametrize("read", [Store.open, Index.open, AlignedModel.open, local], ids=lambda read: read.__qualname__)
def test_python_names_the_url_that_was_meant(read: Any) -> None:
    with pytest.raises(InputError, match="s3://x"):
        read("s3:/x")


@pytest.mark.parametrize("command", [["index", "--data", "images", "--out", "ix"], ["eval", "--mixbench", "."]])
def test_the_folder_of_an_encoder_is_no_url_with_one_slash(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = csaligner(*command, "--run", f"hf:{tmp_path}/model", folder=tmp_path)
    assert done.returncode == 1
    assert "did you mean" not in done.stderr


def test_a_letter_of_a_drive_is_a_path() -> None:
    assert local("c:/x") == Path("c:/x")


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gs://", "memory://"])
def test_a_url_without_a_bucket_is_told_what_is_wanted(url: str) -> None:
    with pytest.raises(InputError, match=r"wanted \w+://bucket/name"):
        RemoteFolder.open(url)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server answers and no keys are set, whatever the machine has."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://nothing.invalid")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://nothing.invalid")
    monkeypatch.setattr("csaligner.remote.RETRY_S", 2)  # Google's client tries for 15 minutes by default


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("url", ["s3://nothing/x", "gs://nothing/x"])
def test_without_a_network_a_command_ends_soon_and_says_why_in_few_words(url: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = csaligner("search", url, "red", folder=tmp_path)
    assert time.monotonic() - begin < 60
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "resolve" in last
    assert "nothing/x: cannot be opened" in last
    assert len(last) < 200


def test_a_slow_answer_is_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fsspec")
    folder = RemoteFolder.open("memory://slow")
    monkeypatch.setattr("csaligner.remote.WAITING_S", 0.05)

    class Slow:
        type_name = "slow"

        @staticmethod
        def get_file_info(_: object) -> list[Any]:
            time.sleep(0.5)
            return []

    replace(folder, files=Slow()).stamps()
    assert "memory://slow: waiting" in caplog.text


def test_an_error_of_any_client_is_one_line_that_ends_with_its_cause() -> None:
    class Client(Exception):
        pass

    class Broken:
        @staticmethod
        def get_file_info(_: object) -> None:
            raise Client(f"Unknown error: {'detail ' * 60}: N5Azure: the token has\nexpired")

    with pytest.raises(CSAlignerError, match="the token has expired") as caught:
        RemoteFolder("abfs://c/x", Broken(), "c/x").stamps()
    assert len(str(caught.value)) < 250
