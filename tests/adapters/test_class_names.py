"""Class-name adapter: its formula against NumPy, and the bundled aligner on photographs and drawings."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner, AlignerConfig
from csaligner.adapters.class_names import ClassNameAdapter, classifier, count_photos, photo_line
from csaligner.adapters.mlp import MLPAdapter
from csaligner.adapters.start import blank
from csaligner.checks import InputError
from csaligner.comparison.methods import FREE, NotApplicable
from csaligner.config import AdapterConfig, StartConfig, TrainConfig
from csaligner.datasets.images.load import load_image
from csaligner.datasets.openmoji import OpenMoji
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from csaligner.estimator import CSAligner
from csaligner.model import ASSET, AlignedModel
from csaligner.selection.fit import Selecting
from csaligner.selection.photos import CLASS_NAMES, photo_aligner
from csaligner.types import PairedFeatures

CAPTIONS = {"a palace by the water": "china.jpg", "a close-up of a yellow and red flower": "flower.jpg"}
WOMAN = "a woman in a military uniform"


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    """Caption and photograph; scikit-learn and Matplotlib install them."""
    found = {
        caption: load_image(Path(str(files("sklearn.datasets.images") / name))) for caption, name in CAPTIONS.items()
    }
    found[WOMAN] = load_image(Path(str(files("matplotlib") / "mpl-data/sample_data/grace_hopper.jpg")))
    return found


@pytest.fixture(scope="module")
def bundled() -> AlignedModel:
    return AlignedModel.open("bundled")


def _adapter(seed: int = 0, dim: int = 6) -> ClassNameAdapter:
    torch.manual_seed(seed)
    adapter = ClassNameAdapter(blank(1280, dim), AdapterConfig(name="class_names", hidden=4))
    for value in (*adapter.parameters(), *adapter.buffers()):
        if value is not adapter.weight and value is not adapter.bias:
            torch.nn.init.normal_(value.data)
    return adapter.eval()


def test_the_output_is_the_weighted_sum_of_the_class_vectors_and_of_the_mlp() -> None:
    adapter, x = _adapter(), torch.rand(5, 1280)
    weight, bias = (a.double().numpy() for a in classifier())
    a = {name: value.detach().double().numpy() for name, value in adapter.state_dict().items()}
    rows = x.double().numpy()
    logits = (rows @ weight.T + bias) / 2
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    g = (0.3 + 0.6 / (1 + np.exp(-(unit @ a["gate"] + a["gate_bias"]))))[:, None]
    bridge = shares @ a["classes"] - (1 - g) * a["centres"][0] - g * a["centres"][1]
    drawn = adapter.drawings(x).detach().double().numpy()
    wanted = (1 - g) * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    wanted += g * bridge / np.linalg.norm(bridge, axis=1, keepdims=True)
    np.testing.assert_allclose(adapter(x).detach().numpy(), wanted, atol=2e-4)


def test_a_saved_aligner_gives_the_same_and_holds_no_classifier(tmp_path: Path) -> None:
    config = AlignerConfig(
        dim_image=1280,
        dim_text=8,
        dim=6,
        image_adapter=AdapterConfig(name="class_names", hidden=4),
        text_adapter=AdapterConfig(name="mlp", hidden=4),
    )
    model = Aligner(config, (blank(1280, 6), blank(8, 6))).eval()
    model.image_adapter.load_state_dict(_adapter(1).state_dict())
    model.save(tmp_path / "saved")
    again = Aligner.load(tmp_path / "saved")
    x = torch.rand(3, 1280)
    assert torch.equal(again.encode_image(x), model.encode_image(x))
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 4 * 1280 * 100


def test_other_features_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="class_names"):
        ClassNameAdapter(blank(512, 6), AdapterConfig(name="class_names"))


def test_a_sentence_finds_its_photograph_among_photographs_and_drawings(
    bundled: AlignedModel, photos: dict[str, Image.Image]
) -> None:
    drawings = [item.image for item in OpenMoji().items()[:60:3]]
    images = [*photos.values(), *(load_image(image) for image in drawings)]
    scores = bundled.encode_text(list(photos)) @ bundled.encode_image(images).T
    assert np.asarray(scores).argmax(axis=1).tolist() == [0, 1, 2]


def test_photographs_are_named_in_one_line(bundled: AlignedModel, photos: dict[str, Image.Image]) -> None:
    encoder, adapter = open_encoder(IMAGE_ENCODER, "image"), bundled.aligner.image_adapter
    drawings = [load_image(item.image) for item in OpenMoji().items()[:40:2]]
    seen = [encoder.encode([encoder.prepare(image)]) for image in (*photos.values(), *drawings)]
    assert count_photos(adapter, torch.cat(seen)) == 3
    assert count_photos(adapter, torch.cat(seen[3:])) == 0
    assert count_photos(adapter, torch.zeros(0, 1280)) == 0
    assert count_photos(MLPAdapter(blank(1280, 6), AdapterConfig()), torch.cat(seen)) == 0
    line = photo_line(3, 23)
    assert line.startswith("3 of 23 images")
    assert "people" in line


def test_the_card_of_the_bundled_aligner_names_its_sources_and_limits() -> None:
    card = (ASSET / "README.md").read_text(encoding="utf-8")
    for fact in ("1,000 ImageNet class", "no captioned photograph", "people", "places", "MIT", "CC BY-SA 4.0"):
        assert fact in card


def _pairs(dims: tuple[int, int] = (1280, 384), n: int = 30) -> PairedFeatures:
    torch.manual_seed(0)
    return PairedFeatures(torch.rand(n, dims[0]), torch.randn(n, dims[1]), torch.arange(n), tuple(map(str, range(n))))


def test_a_start_by_class_names_is_the_bundled_aligner_and_trains() -> None:
    pairs, config = _pairs(), TrainConfig(start=StartConfig(kind="class_names"))
    start = Aligner.fit_start(pairs, config)
    bundled = Aligner.load(ASSET)
    assert torch.equal(start.eval().encode_image(pairs.image), bundled.encode_image(pairs.image))
    fitted = CSAligner(start={"kind": "class_names"}, epochs=2, gate=False, verbose=False).fit_features(pairs).model
    assert not torch.equal(fitted.encode_text(pairs.text), bundled.encode_text(pairs.text))


def test_a_start_by_class_names_refuses_other_features() -> None:
    config = TrainConfig(start=StartConfig(kind="class_names"))
    with pytest.raises(InputError, match="class_names"):
        Aligner.fit_start(_pairs((512, 384)), config)
    with pytest.raises(InputError, match="class_names"):
        Aligner.fit_start(_pairs(), config, ("other", "encoders"))


def test_the_baseline_by_class_names_is_the_centred_bridge() -> None:
    pairs = _pairs()
    adapter = Aligner.load(ASSET).image_adapter
    assert isinstance(adapter, ClassNameAdapter)
    found = FREE["class names"].fit(pairs, TrainConfig(), {})(pairs)
    image = adapter.probabilities(pairs.image) @ adapter.classes
    image = torch.nn.functional.normalize(image, dim=1)
    wanted = torch.nn.functional.normalize(image - image.mean(dim=0), dim=1)
    torch.testing.assert_close(found.image, wanted)
    with pytest.raises(NotApplicable, match="bundled"):
        FREE["class names"].fit(_pairs((16, 16)), TrainConfig(), {})


def _photo_pairs(photos: dict[str, Image.Image], n: int = 24) -> PairedFeatures:
    """Crops of three photographs with their captions."""
    image, text = open_encoder(IMAGE_ENCODER, "image"), open_encoder(TEXT_ENCODER, "text")
    crops = [photo.crop((8 * i, 4 * i, 300 + 8 * i, 260 + 4 * i)) for i in range(n // 3) for photo in photos.values()]
    x = torch.cat([image.encode([image.prepare(crop)]) for crop in crops])
    y = text.encode([text.prepare(caption) for caption in photos]).repeat(n // 3, 1)
    return PairedFeatures(x.float(), y.float(), torch.arange(n), tuple(map(str, range(n))))


def test_few_captioned_photographs_start_from_the_bundled_aligner(photos: dict[str, Image.Image]) -> None:
    pairs = _photo_pairs(photos)
    chosen = CSAligner(verbose=False).fit_features(pairs)
    assert chosen.selection_ is not None
    assert chosen.selection_.start is not None
    assert CLASS_NAMES in chosen.selection_.start.gains
    kept = Selecting(TrainConfig()).start(pairs, replace(chosen.selection_.start, label=CLASS_NAMES, starts=None))
    assert torch.equal(kept.eval().encode_text(pairs.text), Aligner.load(ASSET).encode_text(pairs.text))


def test_drawings_and_other_features_are_not_started_from_the_bundled_aligner(photos: dict[str, Image.Image]) -> None:
    pairs, known = _photo_pairs(photos), (None, None)
    assert photo_aligner(pairs, TrainConfig(), known) is not None
    assert photo_aligner(pairs, TrainConfig(), ("other", "encoders")) is None
    assert photo_aligner(pairs, TrainConfig(image_adapter=AdapterConfig(name="identity")), known) is None
    encoder = open_encoder(IMAGE_ENCODER, "image")
    images = [load_image(item.image) for item in OpenMoji().items()[:48:2]]
    drawn = torch.cat([encoder.encode([encoder.prepare(image)]) for image in images]).float()
    assert photo_aligner(replace(pairs, image=drawn), TrainConfig(), known) is None
