"""Files and folders on object storage: copies in the local cache, and their upload.

What is at a URL is copied into $XDG_CACHE_HOME/csaligner/remote (default: ~/.cache), one copy to read and one to
write. Only files that changed since the last copy, by size and time, are transferred. `s3://` is read by pyarrow, other
schemes by pyarrow or, if it does not know them, by fsspec.

Object storage has neither locks nor a rename of folders. So an upload writes the manifest last, after it has checked
that nobody else has written it, and removes old files after that; a copy of what changed meanwhile is made again. Two
uploads that end within the same moment are not detected.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from .checks import CSAlignerError, InputError
from .files import CHECKSUMS, write_atomically, write_json
from .locks import only_writer
from .urls import is_url

MANIFESTS = ("csaligner.json", "index.json", "run.json", "spaces.json")  # of a store, an index and two kinds of runs
COPY, RECORD, UPLOADING = "copy", "files.json", "uploading"  # in the cache, for each URL and use
TRIES, AT_ONCE, LONGEST = 3, 8, 160  # copies while somebody writes; transfers at once; characters of a cause
RECENT = 3_000_000_000  # ns
GOOGLE, BUCKETS = ("gs", "gcs"), ("s3", "gs", "gcs")  # schemes; those whose URL starts with the name of a bucket
RETRY_S, WAITING_S = 10, 5  # of Google's client, whose default is 15 minutes; of a first answer, until a warning
_log = logging.getLogger(__name__)  # on standard error, unless the program that imports this says otherwise
Stamps = dict[str, list[int]]  # name -> [bytes, time in ns]


def local(source: Path | str, manifests: Sequence[str] = ()) -> Path:
    """Return the path to read a source from: itself or, of a URL, its copy in the cache.

    A URL is that of a file, of a folder written by csaligner or, without `manifests`, of any folder; a file and any
    other folder keep their names. manifests: names of files, one of which the folder must contain. Raises InputError
    if there is no such file or folder, and CSAlignerError if it cannot be read or is being written.
    """
    if not is_url(source):
        return Path(source)
    remote = RemoteFolder.open(str(source))
    manifest = remote.manifest(manifests or MANIFESTS)
    if manifest is not None:
        return copy_of(remote.url, manifest)
    if manifests:
        raise InputError(
            f"{remote.url}: contains no {' or '.join(manifests)}; give the URL of a folder written by csaligner"
        )
    return _copy_of_any(remote)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL. files: a pyarrow filesystem; root: the path in it."""

    url: str
    files: Any
    root: str

    @classmethod
    def open(cls, url: str) -> RemoteFolder:
        """Raises InputError if nothing reads this scheme or the URL names no place."""
        from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs

        scheme, _, place = url.partition("://")
        if not place.strip("/") or (scheme in BUCKETS and place.startswith("/")):
            raise InputError(f"{url}: wanted {scheme}://bucket/name")
        url, place = url.rstrip("/"), place.rstrip("/")
        if scheme == "s3":
            where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            return cls(url, fs.S3FileSystem(endpoint_override=where), place)
        limit = f"{'&' if '?' in url else '?'}retry_limit_seconds={RETRY_S}" if scheme in GOOGLE else ""
        with _transfer(url, "opened"), suppress(ArrowInvalid, ArrowNotImplementedError):
            return cls(url, *fs.FileSystem.from_uri(url + ("" if "retry_limit_seconds=" in url else limit)))
        try:
            import fsspec

            files, root = fsspec.core.url_to_fs(url)
        except Exception as error:  # of the package that reads the scheme
            raise InputError(
                f"{url}: {cause(error)}; give an s3:// URL, or install fsspec with the package that reads {scheme}://"
            ) from None
        return cls(url, fs.PyFileSystem(fs.FSSpecHandler(files)), root)

    def manifest(self, names: Sequence[str]) -> str | None:
        """Return the first of these files that the folder contains."""
        with _transfer(self.url, "opened"), _patience(self.url):
            found = self.files.get_file_info([f"{self.root}/{name}" for name in names])
        return next((name for name, info in zip(names, found, strict=True) if info.is_file), None)

    def parent(self) -> tuple[RemoteFolder, str]:
        """Return the folder that contains this file or folder, and the name in it."""
        outer, _, name = self.root.rpartition("/")
        return replace(self, url=self.url.rpartition("/")[0], root=outer), name

    def stamps(self, name: str = "") -> Stamps:
        """Return the size in bytes and the time in ns of each file, by name. name: only of this file, or of the files
        in this folder."""
        from pyarrow import fs

        if name:
            with _transfer(f"{self.url}/{name}", "opened"), _patience(f"{self.url}/{name}"):
                info = self.files.get_file_info(f"{self.root}/{name}")
            if info.is_file:
                return {name: [info.size, info.mtime_ns or 0]}
            inner = replace(self, url=f"{self.url}/{name}", root=f"{self.root}/{name}")
            return {f"{name}/{each}": stamp for each, stamp in inner.stamps().items()}

        with _transfer(self.url, "opened"), _patience(self.url):
            found = self.files.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        root = self.root.strip("/") + "/"
        return {
            info.path.lstrip("/").removeprefix(root): [info.size, info.mtime_ns or 0] for info in found if info.is_file
        }

    def state(self, stamps: Stamps, manifest: str) -> str | None:
        """Return a digest that changes with every write of the folder, None without a manifest: that of the manifest
        and of checksums.json, which an index has."""
        return None if manifest not in stamps else _state(self._read(n) for n in (manifest, CHECKSUMS) if n in stamps)

    def _read(self, name: str) -> bytes:
        with _transfer(f"{self.url}/{name}", "read"), self.files.open_input_stream(f"{self.root}/{name}") as source:
            content: bytes = source.read()
            return content

    def download(self, name: str, path: Path) -> None:
        """Download a file; a process that reads an earlier one keeps it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _transfer(f"{self.url}/{name}", "read"), self.files.open_input_stream(f"{self.root}/{name}") as source:
            write_atomically(path, lambda temporary: _copy(source, temporary.open("wb")))

    def upload(self, path: Path, name: str) -> None:
        place = f"{self.root}/{name}"
        with _transfer(f"{self.url}/{name}", "written"):
            if self.files.type_name != "s3":
                self.files.create_dir(place.rpartition("/")[0], recursive=True)
            with path.open("rb") as source:
                _copy(source, self.files.open_output_stream(place))

    def delete(self, name: str) -> None:
        with _transfer(f"{self.url}/{name}", "deleted"):
            self.files.delete_file(f"{self.root}/{name}")


def copy_of(url: str, manifest: str, *, skip: Callable[[str], bool] = lambda name: False) -> Path:
    """Copy a folder at a URL into the cache and return the copy, which is only read.

    manifest: name of the file that is written last; skip: names that are not copied. Raises InputError if there is no
    such folder, and CSAlignerError if it cannot be read or is being written.
    """
    remote, place = RemoteFolder.open(url), _cache(url, "read")
    with FileLock(place / ".lock"):  # readers wait for each other
        for _ in range(TRIES):
            stamps = remote.stamps()
            if manifest not in stamps:
                raise InputError(f"{url}: contains no {manifest}; give the URL of a folder written by csaligner")
            before = remote.state(stamps, manifest)
            _fetch(remote, place, {name: stamp for name, stamp in stamps.items() if not skip(name)})
            if remote.state(remote.stamps(), manifest) == before == _state_of(place / COPY, manifest):
                return place / COPY
    raise CSAlignerError(f"{url}: is being written by another process; try again when it has ended")


def _copy_of_any(remote: RemoteFolder) -> Path:
    """Copy a file, or a folder without a manifest, under its name."""
    outer, name = remote.parent()
    if not outer.root and remote.root == name and remote.files.type_name != "py":
        raise InputError(f"{remote.url}: is a bucket, wanted {remote.url}/name")
    place = _cache(remote.url, "read")
    with FileLock(place / ".lock"):
        for _ in range(TRIES):
            stamps = outer.stamps(name)
            if not stamps:
                raise InputError(f"{remote.url}: no such file or folder; check the URL")
            _fetch(outer, place, stamps)
            if outer.stamps(name) == stamps:
                return place / COPY / name
    raise CSAlignerError(f"{remote.url}: is being written by another process; try again when it has ended")


@contextmanager
def working_copy(url: str, manifest: str, *, new: bool = False, resume: bool = True) -> Iterator[Path]:
    """Give a copy to change, or a path for a new folder if there is nothing at the URL, and upload it at the end.

    new: there must be nothing at the URL. After an error nothing is uploaded and the copy is kept, so that the next
    call resumes; resume=False: it starts from what is at the URL. Raises InputError if another process writes to the
    copy or wrote to the URL since it was made, and CSAlignerError if a transfer fails.
    """
    remote, place = RemoteFolder.open(url), _cache(url, "write")
    uploading = place / UPLOADING
    with only_writer(place, "out"):
        stamps = remote.stamps()
        if new and manifest in stamps:
            raise InputError(f"out: {url} exists; choose another folder or delete it")
        if stamps and manifest not in stamps and not uploading.exists():
            raise InputError(f"out: {url} has files but no {manifest}; choose an empty or a new folder")
        before = remote.state(stamps, manifest)
        if new:
            shutil.rmtree(place / COPY, ignore_errors=True)
        elif not resume or before != _recorded(place).get("state"):  # not what this copy was made of
            _fetch(remote, place, stamps, before)
        yield place / COPY
        if remote.state(remote.stamps(), manifest) != before:
            raise InputError(f"out: {url} was written by another process meanwhile; run the same command again")
        uploading.touch()
        _publish(remote, place, manifest)
        uploading.unlink()


@contextmanager
def changed(source: Path | str) -> Iterator[Path]:
    """Give a folder written by csaligner that exists, to add files to it or replace them; of a URL a copy, from which
    they are uploaded at the end. Raises what working_copy raises."""
    if not is_url(source):
        yield Path(source)
        return
    manifest = RemoteFolder.open(str(source)).manifest(MANIFESTS)
    if manifest is None:
        raise InputError(f"{source}: contains no {' or '.join(MANIFESTS)}; give the URL of a folder that does")
    with working_copy(str(source), manifest, resume=False) as folder:
        yield folder


def _publish(remote: RemoteFolder, place: Path, manifest: str) -> None:
    """Upload what changed, versions of tables after their data and the manifest last; then delete the rest."""
    folder, there, recorded = place / COPY, remote.stamps(), _recorded(place)["files"]
    local = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}
    changed = [name for name, path in local.items() if name not in there or _is_other(path, recorded.get(name))]
    versions = [name for name in changed if "/_versions/" in name]
    top = [name for name in changed if "/" not in name and name != manifest]
    data = [name for name in changed if name not in {*versions, *top, manifest}]
    for names in (data, versions, top, [manifest]):
        _each(names, lambda name: remote.upload(local[name], name))
    _each(sorted(set(there) - set(local)), remote.delete)
    now = {name: stamp for name, stamp in remote.stamps().items() if name in local}
    _record(place, now, _state_of(folder, manifest))


def _fetch(remote: RemoteFolder, place: Path, stamps: Stamps, state: str | None = None) -> None:
    """Make the copy equal to the files of these stamps; only what changed is downloaded. state: of the remote folder,
    to record."""
    folder, recorded, start = place / COPY, _recorded(place)["files"], time.time_ns()
    for name in stamps:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{remote.url}: has a file named {name!r}; give a folder written by csaligner")
    if folder.is_dir() and not stamps:
        shutil.rmtree(folder)
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that they are in
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in stamps:
            path.unlink()
    same = {
        name: stamp
        for name, stamp in stamps.items()
        if stamp[1]
        and name in recorded
        and recorded[name][:2] == stamp
        and not _is_other(folder / name, recorded[name])
    }
    _record(place, same)
    _each([name for name in stamps if name not in same], lambda name: remote.download(name, folder / name))
    # a file of the last seconds can change again within the resolution of its time: it is not taken as known
    _record(place, {name: stamp for name, stamp in stamps.items() if start - stamp[1] > RECENT}, state)


def _each(names: Iterable[str], transfer: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(transfer, names))


def _is_other(path: Path, recorded: Sequence[int] | None) -> bool:
    """Whether a local file is missing or differs in size or time from what was transferred."""
    if recorded is None or not path.is_file():
        return True
    found = path.stat()
    return [found.st_size, found.st_mtime_ns] != [recorded[0], recorded[2]]


def _state(contents: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _state_of(folder: Path, manifest: str) -> str:
    return _state((folder / n).read_bytes() for n in (manifest, CHECKSUMS) if (folder / n).is_file())


def _record(place: Path, stamps: Stamps, state: str | None = None) -> None:
    files = {name: [*stamp, (place / COPY / name).stat().st_mtime_ns] for name, stamp in stamps.items()}
    write_json(place / RECORD, {"state": state, "files": files})


def _recorded(place: Path) -> dict[str, Any]:
    """Return the state of the remote folder, and size, remote time and local time of each file, when it was copied."""
    try:
        found: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"state": None, "files": {}}
    return found


def _cache(url: str, use: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache if os.path.isabs(cache) else Path.home() / ".cache", "csaligner", "remote")
    place = root / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16] / use
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def _copy(source: Any, target: Any) -> None:
    with target:
        while chunk := source.read(1 << 22):
            target.write(chunk)


@contextmanager
def _patience(url: str) -> Iterator[None]:
    """Say what the program waits for if an answer takes long: some schemes have no limit of time."""
    timer = threading.Timer(WAITING_S, lambda: _log.warning("%s: waiting for an answer", url))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _transfer(what: str, done: str) -> Iterator[None]:
    """Turn errors of a file system into a CSAlignerError of one line."""
    try:
        yield
    except CSAlignerError:
        raise
    except Exception as error:  # of pyarrow, or of any package of fsspec
        raise CSAlignerError(
            f"{what}: cannot be {done} ({cause(error)}); check the name, the network and the keys"
        ) from None


def cause(error: BaseException) -> str:
    """Return the last part of a client's message, which says what failed, in at most LONGEST characters."""
    text = " ".join(str(error).split()).partition(" error_info=")[0] or type(error).__name__
    for before in ("with a last message of ", "message was: ", "AWS Error ", r"CURL error \[\d+\]=", r"Details: "):
        text = re.split(before, text)[-1].strip() or text
    while len(text) > LONGEST and ": " in text:
        text = text.partition(": ")[2]
    return textwrap.shorten(text, LONGEST, placeholder=" ...")
