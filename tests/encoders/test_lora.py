"""LoRA in small encoders: training, resuming, PEFT files and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.lora import EncoderTower, LoRAAligner, TunableEncoder
from csaligner.checks import InputError
from csaligner.config import LoRAConfig, TrainConfig, build_config
from csaligner.encoders import open_encoder
from csaligner.model import AlignedModel
from csaligner.pipeline import evaluate_run, load_run, train
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.training.encoder_batches import TrainableStore
from csaligner.types import Item

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
Tiny = Callable[[str], Path]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}
THINGS = ["cat", "dog", "house"]


class Squares:
    """Images of one colour, with captions of a colour and a thing; splits by number."""

    name, attribution = "squares", ""

    def __init__(self, folder: Path, n: int = 36) -> None:
        g = np.random.default_rng(0)
        self._items = []
        for i in range(n):
            colour, thing = list(COLOURS)[i % 3], THINGS[(i // 3) % 3]
            path = folder / f"{i}.png"
            pixels = np.clip(np.array(COLOURS[colour]) + g.normal(0, 20, (16, 16, 3)), 0, 255)
            pixels[: 4 * (1 + THINGS.index(thing)), :4] = 0
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            split: Any = ("test", "val", "train", "train", "train", "train")[i // 3 % 6]
            self._items.append(Item(str(i), path, (f"a {colour} {thing}",), str(i), split))

    def items(self) -> list[Item]:
        return self._items


@pytest.fixture(scope="module")
def store(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("squares")
    image = open_encoder(f"hf:{tiny_model('clip')}", "image")
    both_ways = "&bidirectional=true" if int(transformers.__version__.split(".")[0]) >= 5 else ""
    text = open_encoder(f"hf:{tiny_model('llama')}?pooling=mean{both_ways}", "text")
    return embed(Squares(folder), image, text, folder / "store", ExtractSettings(workers=0))


def config(sides: str = "both", **settings: Any) -> TrainConfig:
    data = {"lora": {"sides": sides, "rank": 2}, "epochs": 6, "batch_size": 12, "lr": 3e-3, "evaluate_every": 3}
    return build_config(TrainConfig, data | {"dim": 8} | settings)


def base_weights(tower: EncoderTower) -> dict[str, torch.Tensor]:
    """Return the frozen weights of a tower, which training must not change."""
    return {name: p.detach() for name, p in tower.backbone.named_parameters() if not p.requires_grad}


def untrained(store: Store, settings: TrainConfig) -> tuple[LoRAAligner, TrainableStore]:
    assert settings.lora is not None
    tuned = TrainableStore.open(store, settings.lora)
    heads = Aligner.fit_start(store.features("train"), settings, (store.image_fingerprint, store.text_fingerprint))
    torch.manual_seed(0)
    return LoRAAligner(heads, tuned.towers, settings.lora).eval(), tuned


def test_a_new_one_computes_what_the_frozen_encoders_compute(store: Store) -> None:
    model, tuned = untrained(store, config())
    batch = next(tuned.sampler(config()).epoch(0))
    assert isinstance(batch.text, dict)
    assert isinstance(batch.image, dict)
    image, text = model(batch.image, batch.text)
    frozen = store.features("train")
    with torch.no_grad():
        torch.testing.assert_close(image, model.heads.encode_image(frozen.image[batch.image_ids]), atol=1e-5, rtol=0)
        wanted = model.heads.encode_text(frozen.text[batch.text_ids])
        torch.testing.assert_close(text, wanted, atol=1e-5, rtol=0)


def test_one_side_may_stay_cached(store: Store) -> None:
    model, tuned = untrained(store, config("text"))
    batch = next(tuned.sampler(config("text")).epoch(0))
    assert isinstance(batch.image, torch.Tensor)
    assert torch.equal(batch.image, store.features("train").image[batch.image_ids])
    assert set(model.towers) == {"text"}


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]]:
    """Return a trained run: its folder, the model, and the encoder weights before training."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    tuned = TrainableStore.open(store, LoRAConfig(sides="both"))
    before = {side: base_weights(tower) for side, tower in tuned.towers.items()}
    before = {side: {k: v.clone() for k, v in weights.items()} for side, weights in before.items()}
    found = train(store, config(), out)
    assert found.lora is not None
    return out, found.lora, before


def test_training_moves_the_lora_and_leaves_the_encoders(
    run: tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]],
) -> None:
    _, model, before = run
    for side in ("image", "text"):
        after = base_weights(model.towers[side])  # type: ignore[arg-type]
        plain = {k.replace("base_layer.", "").removeprefix("base_model.model."): v for k, v in after.items()}
        assert set(plain) == set(before[side])
        assert all(torch.equal(plain[name], weights) for name, weights in before[side].items())
        moved = [p for n, p in model.towers[side].named_parameters() if "lora_B" in n]
        assert moved
        assert all(p.abs().max() > 0 for p in moved)


def test_the_loss_goes_down(run: tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]]) -> None:
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/total"] < lines[0]["loss/total"]


def test_heads_may_start_from_random_weights(store: Store, tmp_path: Path) -> None:
    prior = {"name": "prior", "hidden": 32, "blocks": 1}
    adapters = {"image_adapter": "linear", "text_adapter": prior}
    settings = config("text", start={"kind": "random"}, epochs=12, evaluate_every=6, **adapters)
    found = train(store, settings, tmp_path / "run")
    assert found.lora is not None
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/info_nce"] < lines[0]["loss/info_nce"]


def test_only_adapter_files_are_saved_and_peft_reads_them(
    run: tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]], store: Store
) -> None:
    folder = run[0] / "checkpoints" / "latest"
    for side in ("image_lora", "text_lora"):
        assert sorted(p.name for p in (folder / side).iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        targets = json.loads((folder / side / "adapter_config.json").read_text())["target_modules"]
        assert targets == sorted(targets)
        assert len(targets) > 1
    base = cast(TunableEncoder, open_encoder(store.encoders["image"].id)).tower.backbone
    theirs = peft.PeftModel.from_pretrained(base, folder / "image_lora").eval()
    encoder = open_encoder(store.encoders["image"].id)
    source = store.image_sources["0"]
    assert isinstance(source, Path)
    pixels = encoder.prepare(Image.open(source))[None]
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels).image_embeds
        found = run[1].towers["image"]({"pixel_values": pixels}).pooled
        plain = encoder.encode(list(pixels))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found - plain).abs().max() > 1e-3


def test_it_opens_again_and_merged_equals_unmerged(
    run: tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]], store: Store
) -> None:
    model, captions = AlignedModel.open(run[0]), store.features("test").captions
    assert captions is not None
    wanted = model.encode_text(captions)
    encoder = cast(TunableEncoder, open_encoder(store.encoders["text"].id))
    with torch.no_grad():
        trained = run[1].encode_text(encoder.inputs(captions))
        model.merge_lora()
    torch.testing.assert_close(torch.from_numpy(wanted), trained, atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode_text(captions), wanted, atol=1e-5)
    tower = cast(TunableEncoder, model.encoder("text")).tower
    assert not any("lora" in name for name, _ in tower.named_parameters())


def test_a_run_is_evaluated_with_its_encoders(
    run: tuple[Path, LoRAAligner, dict[Any, dict[str, Any]]], store: Store
) -> None:
    names = [result.name for result in evaluate_run(run[0], "test", store)]
    assert names[-1] == "CS-Aligner"
    heads, features = load_run(run[0], store, "test")
    assert (features.text - store.features("test").text).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"\+lora"):
        store.require(text=heads.config.text_encoder)


def test_an_interrupted_run_goes_on_to_the_same_weights(store: Store, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, total: int, values: Any) -> None:
        if step == 2:
            raise Stop

    settings = config("text", epochs=2, evaluate_every=1, batch_size=24)
    whole = train(store, settings, tmp_path / "whole")
    with pytest.raises(Stop):
        train(store, settings, tmp_path / "cut", stop)
    resumed = train(store, settings, tmp_path / "cut")
    assert whole.lora is not None
    assert resumed.lora is not None
    for a, b in zip(whole.lora.parameters(), resumed.lora.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_requests_are_one_line(store: Store) -> None:
    settings = config("text", lora={"sides": "text", "targets": ["nothing"]})
    with pytest.raises(InputError, match=r"lora.*nothing"):
        untrained(store, settings)
