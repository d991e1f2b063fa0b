"""The hint that names the command which adds an extra: right for a clone, a wheel, git and an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csaligner.extras import install_command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Content of direct_url.json -> an installation of csaligner with it, the first on the path."""

    def install(recorded: dict[str, Any] | None) -> None:
        info = tmp_path / "site" / "csaligner-9.9.9.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: csaligner\nVersion: 9.9.9\n")
        if recorded:
            (info / "direct_url.json").write_text(json.dumps(recorded))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return install


def test_from_an_index(installed: Any) -> None:
    installed(None)
    assert install_command("app") == "pip install 'csaligner[app]'"


@pytest.mark.parametrize("editable", [True, False])
def test_from_a_clone(installed: Any, tmp_path: Path, editable: bool) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    installed({"url": clone.as_uri(), "dir_info": {"editable": editable}})
    option = "--editable " if editable else ""
    assert install_command("app") == f"pip install {option}'{clone}[app]'"


def test_from_a_wheel_and_after_it_is_gone(installed: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "csaligner-9.9.9-py3-none-any.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert install_command("hf") == f"pip install '{wheel}[hf]'"
    wheel.unlink()
    assert install_command("hf") == "pip install 'csaligner[hf]'"


def test_from_git(installed: Any) -> None:
    installed({"url": "https://example.org/csaligner.git", "vcs_info": {"vcs": "git", "commit_id": "1"}})
    assert install_command("hf") == "pip install 'csaligner[hf] @ git+https://example.org/csaligner.git'"
