"""Checks the contents of the wheel and the source archive.

python tests/wheel.py DIST
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 20e6  # bytes
LICENCES = {"LICENSE", "CC-BY-SA-4.0.txt"}
IN_THE_ARCHIVE = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"}


def tracked() -> set[str]:
    """Return the files of the package in the repository: `csaligner/...`."""
    listed = subprocess.run(["git", "ls-files", "src/csaligner"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.removeprefix("src/") for line in listed.stdout.splitlines()}


def problems(wheel: Path, archive: Path, wanted: set[str]) -> list[str]:
    """Return one line per problem."""
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if not name.split("/")[0].endswith(".dist-info")}
        licences = {Path(name).name for name in file.namelist() if "/licenses/" in name}
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    source = {f"src/{name}" for name in wanted}
    return [
        *(f"{wheel.name}: lacks {name}" for name in sorted(wanted - inside)),
        *(f"{wheel.name}: holds {name}, which is not in the repository" for name in sorted(inside - wanted)),
        *(f"{wheel.name}: lacks the licence {name}" for name in sorted(LICENCES - licences)),
        *(f"{name}: has no README" for name in sorted(_assets(wanted)) if f"{name}/README.md" not in wanted),
        *(f"{archive.name}: lacks {name}" for name in sorted((IN_THE_ARCHIVE | source) - packed)),
        *(f"{archive.name}: holds {name}" for name in sorted(packed) if name.startswith(("tests", "benchmarks"))),
        *(f"{p.name}: {p.stat().st_size / 1e6:.1f} MB" for p in (wheel, archive) if p.stat().st_size >= LIMIT),
    ]


def _assets(files: set[str]) -> set[str]:
    """Return the folders of bundled assets."""
    return {"/".join(name.split("/")[:3]) for name in files if name.startswith("csaligner/assets/")}


def main() -> int:
    dist = Path(sys.argv[1])
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    lines = problems(wheel, archive, tracked())
    size = f"{wheel.stat().st_size / 1e6:.1f} and {archive.stat().st_size / 1e6:.1f} MB"
    print("\n".join(lines) or f"wheel and archive: {size}, the files of the repository and no others")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
