"""Prints the installed packages that csaligner requires with all extras, one `name==version` a line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from re import split

from packaging.requirements import Requirement


def main() -> None:
    found: dict[str, str] = {}
    left = [Requirement("csaligner[all]")]
    while left:
        wanted = left.pop()
        name = "-".join(split(r"[-_.]+", wanted.name.lower()))
        extras = {"", *wanted.extras}
        key = f"{name}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        try:
            here = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # of another system or version of Python
        found[key] = f"{name}=={here.version.partition('+')[0]}"
        for line in here.requires or ():
            more = Requirement(line)
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(more)
    print("\n".join(sorted({line for line in found.values() if not line.startswith("csaligner==")})))


if __name__ == "__main__":
    main()
