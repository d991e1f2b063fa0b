"""nDCG@10 on MixBench."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

from csaligner import InputError
from csaligner.cli import app
from csaligner.datasets.mixbench import MixBenchSet, MixItem, read_mixbench
from csaligner.model import AlignedModel
from csaligner.search.mixbench import (
    calibration_pairs,
    encode_parts,
    measure_mixbench,
    mixbench_record,
    ndcg_at,
    score_set,
    vectors_by_method,
)
from csaligner.store.store import write_store
from csaligner.types import PairedFeatures
from tests.support.mixbench import write_2025, write_2026


def by_hand(order: list[int], gains: dict[int, int]) -> float:
    """nDCG@10 of a ranking: order of the items, best first."""
    got = sum(gains.get(item, 0) / math.log2(rank + 1) for rank, item in enumerate(order[:10], start=1))
    best = sorted(gains.values(), reverse=True)[:10]
    return got / sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, start=1))


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_is_the_hand_computation(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 40, generator=generator)
    gains = (torch.rand(6, 40, generator=generator) < 0.1) * torch.randint(1, 4, (6, 40), generator=generator)
    gains[:, 0] = 1
    found = ndcg_at(scores, gains.float())
    for row in range(6):
        order = scores[row].argsort(descending=True).tolist()
        relevant = {item: int(gain) for item, gain in enumerate(gains[row]) if gain}
        assert float(found[row]) == pytest.approx(by_hand(order, relevant), abs=1e-9)


def test_ties_do_not_help() -> None:
    gains = torch.zeros(1, 30)
    gains[0, 0] = 1
    assert float(ndcg_at(torch.zeros(1, 30), gains)) == 0
    assert float(ndcg_at(torch.zeros(1, 4), gains[:, :4])) == pytest.approx(1 / math.log2(5))


def unit(*rows: list[float]) -> Tensor:
    return normalize(torch.tensor(rows), dim=1)


def test_a_set_is_scored_by_the_kind_of_the_answer() -> None:
    corpus = (MixItem("t", "a text", None), MixItem("i", "", Path("i.png")), MixItem("b", "words", Path("b.png")))
    queries = tuple(MixItem(f"q{n}", "query", None) for n in range(3))
    data = MixBenchSet("set", queries, corpus, {"q0": {"t": 1}, "q1": {"i": 1}, "q2": {"b": 1}})
    items = unit([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])
    asked = unit([1.0, 0.2, 0.1], [1.0, 0.9, 0.1], [1.0, 0.5, 0.1])  # ranks 1, 2 and 3
    score = score_set(data, {"method": (asked, items)}).scores["method"]
    assert score.by_kind == pytest.approx({"text": 1.0, "image": 1 / math.log2(3), "both": 0.5})
    assert score.ndcg == pytest.approx((1 + 1 / math.log2(3) + 0.5) / 3)
    assert score.interval[0] <= score.ndcg <= score.interval[1]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_folder_is_measured_as_by_hand(world: Any, tmp_path: Path, weight: float) -> None:
    write_2026(tmp_path)
    model = AlignedModel.open(str(world.run), world.encoders)
    (found,) = measure_mixbench(model, tmp_path, image_weight=weight)
    (data,) = read_mixbench(tmp_path)

    def vector(item: MixItem) -> Tensor:
        image = torch.from_numpy(model.encode_image([item.image])[0]) if item.image is not None else None
        text = torch.from_numpy(model.encode_text([item.text])[0]) if item.text else None
        if image is None or text is None:
            single = text if image is None else image
            assert single is not None
            return single
        return normalize(weight * image + (1 - weight) * text, dim=0)

    items = torch.stack([vector(item) for item in data.corpus])
    expected = []
    for query in data.queries:
        order = (items @ vector(query)).argsort(descending=True).tolist()
        place = {item.id: n for n, item in enumerate(data.corpus)}
        expected.append(by_hand(order, {place[i]: gain for i, gain in data.qrels[query.id].items()}))
    assert found.scores["aligned"].per_query.tolist() == pytest.approx(expected)
    assert found.scores["aligned"].ndcg == pytest.approx(sum(expected) / 3)


def test_weights_0_and_1_are_the_single_vectors_to_the_bit(world: Any, tmp_path: Path) -> None:
    write_2025(tmp_path)
    (data,) = read_mixbench(tmp_path)
    model = AlignedModel.open(str(world.run), world.encoders)
    queries, corpus = (encode_parts(model, items) for items in (data.queries, data.corpus))
    aligned = corpus.mapped(model.align)
    for weight, modality in ((0.0, "text"), (1.0, "image")):
        items = vectors_by_method(model, queries, corpus, weight)["aligned"][1]
        single = aligned.vectors[modality][aligned.rows[modality].tolist().index(2)]  # type: ignore[index]
        assert torch.equal(items[2], single)  # c3 has both


def test_every_method_gives_unit_vectors(world: Any, tmp_path: Path) -> None:
    write_2025(tmp_path)
    (data,) = read_mixbench(tmp_path)
    model = AlignedModel.open(str(world.run), world.encoders)
    queries, corpus = (encode_parts(model, items) for items in (data.queries, data.corpus))
    found = vectors_by_method(model, queries, corpus, 0.5)
    for rows in (rows for pair in found.values() for rows in pair):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)


def test_gr_clip_uses_the_means_of_the_training_pairs(world: Any, tmp_path: Path) -> None:
    write_2025(tmp_path / "data")
    (data,) = read_mixbench(tmp_path / "data")
    model = AlignedModel.open(str(world.run), world.encoders)
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(6).repeat_interleave(2)
    ids = tuple(f"i{n}" for n in range(6))
    pairs = PairedFeatures(torch.rand(6, 4, generator=generator), torch.rand(12, 4, generator=generator), owner, ids)
    infos = (world.images.info, world.texts.info)
    splits = {name: "train" if n < 5 else "test" for n, name in enumerate(ids)}
    store = write_store(tmp_path / "store", pairs, infos, splits=splits)  # type: ignore[arg-type]
    calibration = calibration_pairs(model, store)
    assert calibration is not None
    assert len(calibration.image) == 5
    image, text = (normalize(x, dim=1).mean(dim=0) for x in (pairs.image[:5], pairs.text[:10]))

    queries, corpus = (encode_parts(model, items) for items in (data.queries, data.corpus))
    items = vectors_by_method(model, queries, corpus, 0.3, calibration)["GR-CLIP"][1]
    seen, read = (normalize(corpus.vectors[m], dim=1) for m in ("image", "text"))
    assert torch.allclose(items[0], normalize(read[0] - text, dim=0), atol=1e-6)  # c1 is a text
    assert torch.allclose(items[1], normalize(seen[0] - image, dim=0), atol=1e-6)  # c2 is an image
    both = 0.3 * (seen[1] - image) + 0.7 * (read[1] - text)  # c3
    assert torch.allclose(items[2], normalize(both, dim=0), atol=1e-6)
    assert "GR-CLIP" not in vectors_by_method(model, queries, corpus, 0.3)


def test_a_wrong_weight_is_one_line(world: Any, tmp_path: Path) -> None:
    write_2025(tmp_path)
    with pytest.raises(InputError, match="image_weight"):
        measure_mixbench(AlignedModel.open(str(world.run), world.encoders), tmp_path, image_weight=1.5)


def test_the_command_prints_a_table_and_json(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MSCOCO", "OVEN"):
        write_2025(tmp_path, name)
    model = AlignedModel.open(str(world.run), world.encoders)
    monkeypatch.setattr(AlignedModel, "open", lambda name: model)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["eval", "--run", str(world.run), "--mixbench", str(tmp_path)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "Qwen3-VL-Embedding-2B (published)" in shown.stdout
    assert "0.770" in shown.stdout
    record = json.loads(CliRunner().invoke(app, [*words, "--json", "--image-weight", "0.2", "-q"]).stdout)
    assert record["image_weight"] == 0.2
    expected = mixbench_record(measure_mixbench(model, tmp_path, image_weight=0.2), 0.2)
    assert record["mean"] == pytest.approx(expected["mean"])
    assert set(record["sets"]) == {"MSCOCO", "OVEN"}
