"""What a diagnosis leads to: the command to run next, files of a mean shift, and spaces as feature files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from csaligner.checks import InputError
from csaligner.files import write_atomically, write_folder, write_text
from csaligner.names import DEFAULT, NAME
from csaligner.remote import local
from csaligner.store.manifest import MANIFEST

from .diagnosis import NO_GAP, NO_MEANING, SHIFT, UNKNOWN, Diagnosis
from .space import Space

ARRAYS = {".npy", ".npz", ".safetensors"}
IMPORTED = ARRAYS | {".parquet"}


def next_command(found: Diagnosis, sources: Sequence[str], options: Sequence[str] = ()) -> str:
    """Return the command line that mends what was found, "" if nothing is to be done or the pairs are wrong.

    sources, options: those of the diagnosis, which are repeated where it must be run again.
    """
    again = shlex.join(["csaligner", "diagnose", *sources, *options])
    if found.verdict in {NO_GAP, NO_MEANING}:
        return ""
    if found.verdict == SHIFT:
        return f"{again} --shift shift.npz"
    if found.verdict == UNKNOWN or not found.pairs:
        arrays = all(Path(source).suffix.lower() in ARRAYS for source in sources)
        return "" if arrays else f"{again} --pairs ids --id-key ID"  # the rows of arrays have no ids
    a, b = found.names
    store, run = f"stores/{a}-{b}", f"runs/{a}-{b}"
    known = (a, b) == DEFAULT or not all(map(NAME.fullmatch, (a, b)))
    names = [] if known else ["--names", f"{a},{b}"]
    if len(sources) == 1 and (local(sources[0]) / MANIFEST).is_file():  # a store
        return shlex.join(["csaligner", "train", "--train-data", sources[0], *names, "--out", run])
    files, first = list(sources), ""
    if (
        len(sources) != 2
        or any(Path(s).suffix.lower() not in IMPORTED for s in sources)
        or {*options} & {"--vector-key", "--id-key"}
    ):
        files, first = [f"vectors/{a}.npy", f"vectors/{b}.npy"], f"{again} --save vectors && "
    ids = ["--image-ids", f"vectors/{a}.txt", "--text-image-ids", f"vectors/{b}.txt"] if first else []
    words = ["csaligner", "import", "--image-features", files[0], "--text-features", files[1], *ids]
    words += ["--image-name", a, "--text-name", b, "--out", store]
    train = shlex.join(["csaligner", "train", "--train-data", store, *names, "--out", run])
    return f"{first}{shlex.join(words)} && {train}"


def write_shift(found: Diagnosis, path: Path) -> None:
    """Write the mean of each space as an array named like the space, (d,) float32, to an .npz file.

    The mended vector of a row x is (x - mean) / |x - mean|, for rows of the collection and for queries.
    """
    if path.suffix != ".npz":
        raise InputError(f"shift: got {path}, wanted a name that ends in .npz")
    means = {name: mean.float().numpy() for name, mean in zip(found.names, found.means, strict=True)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **means)  # type: ignore[arg-type]

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def save_spaces(spaces: Sequence[Space], rows: Sequence[Sequence[int] | None], folder: Path) -> None:
    """Write NAME.npy, float32, and NAME.txt, the id of each row, for `csaligner import`. rows: those to write, in
    order, whose ids are then their positions; None: all usable rows. Raises InputError if `folder` exists."""
    if folder.exists():
        raise InputError(f"save: {folder} exists; choose another folder or delete it")
    for space in spaces:
        if not space.name or space.name != Path(space.name).name:
            raise InputError(f"save: {space.name!r} cannot be the name of a file; give --names")

    def write(temporary: Path) -> None:
        for space, chosen in zip(spaces, rows, strict=True):
            at = np.flatnonzero(space.usable.numpy()) if chosen is None else np.array(chosen)
            np.save(temporary / f"{space.name}.npy", space.rows.numpy()[at].astype(np.float32))
            ids = [str(row) for row in (at if chosen is None else range(len(at)))]
            write_text(temporary / f"{space.name}.txt", "\n".join(ids) + "\n")

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, write)
