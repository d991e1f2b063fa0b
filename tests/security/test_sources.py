"""Forbidden calls in the source of the package, found in its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "src" / "csaligner").rglob("*.py"))
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("eval", "exec", "compile", "__import__", "execfile")
OF_MODULES = {
    "os": ("system", "popen", "execv", "execve", "execl", "execlp", "execvp", "spawnl", "spawnv"),
    "tarfile": ("extract", "extractall"),
    "shutil": ("unpack_archive",),
    "tempfile": ("mktemp",),
    "yaml": ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"),
    "subprocess": ("getoutput", "getstatusoutput"),
}
XML = ("xml.etree", "xml.dom", "xml.sax", "lxml")  # they expand entities

# reasons in SECURITY.md
EXPLAINED = {
    "openclipart.py": ["import xml.etree.ElementTree"],  # files of a Debian package; expat stops entity bombs
    "parsing.py": ["yaml.load()"],  # with a loader below SafeLoader
}


def forbidden(source: str) -> list[str]:
    """Return "line: what" for each forbidden call."""
    return [f"{line}: {what}" for node in ast.walk(ast.parse(source)) for line, what in _of(node)]


def _of(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            if name.partition(".")[0] in PICKLES or name.startswith(XML):
                yield node.lineno, f"import {name}"
    if isinstance(node, ast.Call):
        yield from ((node.lineno, what) for what in _of_call(node))


def _of_call(node: ast.Call) -> Iterator[str]:
    words = {word.arg: word.value for word in node.keywords if word.arg}
    owner, name = _name(node.func)
    if not owner and name in CALLS:
        yield f"{name}()"
    if name in OF_MODULES.get(owner, ()):
        yield f"{owner}.{name}()"
    if name in ("extract", "extractall"):
        yield f".{name}() of an archive"
    if (owner, name) == ("torch", "load") and not _is(words.get("weights_only"), True):
        yield "torch.load() without weights_only=True"
    if (owner, name) == ("np", "load") and not _is(words.get("allow_pickle"), False):
        yield "np.load() without allow_pickle=False"
    for option in ("shell", "trust_remote_code", "allow_pickle", "use_auth_token"):
        if option in words and not _is(words[option], False):
            yield f"{option}= something else than False"
    if name in ("run", "Popen", "call", "check_call", "check_output") and owner == "subprocess":
        command = node.args[0] if node.args else words.get("args")
        if isinstance(command, (ast.Constant, ast.JoinedStr)):
            yield "subprocess with a command as one text"
    if name == "from_pretrained" and "use_safetensors" in words and not _is(words["use_safetensors"], True):
        yield "use_safetensors= something else than True"


def _name(function: ast.expr) -> tuple[str, str]:
    if isinstance(function, ast.Name):
        return "", function.id
    if isinstance(function, ast.Attribute):
        return (function.value.id if isinstance(function.value, ast.Name) else "?"), function.attr
    return "?", ""


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_dangerous_call(path: Path) -> None:
    found = [entry.partition(": ")[2] for entry in forbidden(path.read_text(encoding="utf-8"))]
    assert found == EXPLAINED.get(path.name, [])


def test_there_are_sources() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import xml.etree.ElementTree",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run('rm x')",
        "yaml.load(text, Loader)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=config.trust)",
        "AutoModel.from_pretrained(x, use_safetensors=None)",
        "tar.extractall(folder)",
        "tempfile.mktemp()",
    ],
)
def test_what_is_forbidden_is_found(source: str) -> None:
    assert len(forbidden(source)) >= 1


@pytest.mark.parametrize(
    "source",
    ["np.load(p, allow_pickle=False)", "yaml.safe_load(t)", "model.eval()", "torch.load(p, weights_only=True)"],
)
def test_what_is_allowed_is_not_found(source: str) -> None:
    assert forbidden(source) == []
