"""Saving aligners for the Hugging Face hub and loading them again; the hub is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.hub import ModelCard
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from tests.support.features import make_pairs

hub = pytest.importorskip("huggingface_hub")
CARD = ModelCard(
    "squares: 40 images", "mit", ("hf:a/b", "hf:c/d"), {"image_to_text_recall@1": 0.25}, attribution="By us."
)


@pytest.fixture
def model() -> Aligner:
    return Aligner.fit_start(make_pairs(40, (6, 5)), TrainConfig()).eval()


def test_a_folder_there_and_back(model: Aligner, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m", CARD)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, x = Aligner.from_pretrained(tmp_path / "m"), torch.ones(1, 6)
    assert torch.equal(again.encode_image(x), model.encode_image(x))
    card = (tmp_path / "m" / "README.md").read_text()
    for part in ("license: mit\n", "squares: 40 images", "| image_to_text_recall@1 | 0.2500 |", "`hf:c/d`", "By us."):
        assert part in card


def test_a_pinned_snapshot(model: Aligner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    model.save_pretrained(tmp_path / "models--org--m" / "snapshots" / commit, CARD)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    x = torch.ones(1, 5)
    assert torch.equal(Aligner.from_pretrained("org/m", revision=commit).encode_text(x), model.encode_text(x))
    for name, line in (("org/none", "org/none"), ("./none", "none")):
        with pytest.raises(InputError, match=line) as caught:
            Aligner.from_pretrained(name)
        assert "\n" not in str(caught.value)


def test_upload(model: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            seen["token"] = token

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            if name == "org/forbidden":
                raise PermissionError("403\nForbidden")
            seen["private"] = private
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            seen["files"] = sorted(p.name for p in Path(folder_path).iterdir())

    monkeypatch.setattr(hub, "HfApi", Api)
    assert model.push_to_hub("org/m", CARD, private=True, token="t") == "https://hub/org/m"
    assert seen == {"token": "t", "private": True, "files": ["README.md", "config.json", "model.safetensors"]}
    with pytest.raises(InputError, match=r"org/forbidden.*403"):
        model.push_to_hub("org/forbidden", CARD)
