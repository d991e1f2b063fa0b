"""AlignedModel: sources, outputs, and equal preprocessing on every route."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner import AlignedModel
from csaligner import model as module
from csaligner.adapters.aligner import align
from csaligner.app.pictures import read_upload
from csaligner.app.server import ServeSettings, make_app
from csaligner.checks import InputError
from csaligner.config import LoRAConfig, TrainConfig, build_config
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import Sampling
from csaligner.encoders import open_encoder
from csaligner.export.export import export
from csaligner.generation import generate as generate_module
from csaligner.generation.generate import GenerationRequest, generate
from csaligner.integrations.embeddings import AlignedEmbeddings
from csaligner.integrity import write_sealed
from csaligner.pipeline import load_run, train
from csaligner.run_folder import RECORD, read_record
from csaligner.search.build import build_index
from csaligner.search.index import Index
from csaligner.store.embed import ExtractSettings, embed
from csaligner.training.encoder_batches import TrainableStore
from csaligner.types import Encoder, Item, PairedFeatures
from tests.support.encoders import Listed
from tests.support.models import make_clip

pytest.importorskip("transformers")
Tiny = Callable[[str], Path]
WORDS = ("red", "green", "blue", "cat", "dog", "house")
CAPTIONS = ("a red cat", "a green dog", "the blue house")
FAST: dict[str, Any] = {"gate": False, "epochs": 6, "batch_size": 8, "lr": 3e-3, "evaluate_every": 3}
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 60">
<rect width="100" height="60" fill="white"/><circle cx="31" cy="29" r="17" fill="red"/>
<path d="M3 57 L97 5" stroke="black" stroke-width="0.7"/><text x="50" y="50" font-size="9">x</text></svg>"""


def draw(folder: Path, count: int = 18) -> list[Item]:
    """Write images of one colour each, with captions."""
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.new("RGB", (16, 16), (14 * i, 255 - 14 * i, 40 * (i % 6))).save(path)
        caption = f"a {WORDS[i % 6]} {WORDS[i // 6]}"
        items.append(Item(str(i), path, (caption,), str(i), ("train", "train", "val", "test")[i % 4]))
    return items


@dataclass(frozen=True)
class Trained:
    """A finished run without its store. aligned: its test split as in evaluate_run."""

    run: Path
    images: Path
    aligned: PairedFeatures


def trained(tiny_model: Tiny, folder: Path, sides: str, text: str = "bert", **settings: Any) -> Trained:
    pytest.importorskip("peft")
    encoders = (open_encoder(f"hf:{tiny_model('clip')}", "image"), open_encoder(f"hf:{tiny_model(text)}", "text"))
    store = embed(Listed(draw(folder / "images")), *encoders, folder / "store", ExtractSettings(workers=0))
    config = build_config(TrainConfig, FAST | {"lora": {"sides": sides, "rank": 2}} | settings)
    train(store, config, folder / "run")
    aligned = align(*load_run(folder / "run", store, "test"))
    shutil.rmtree(folder / "store")
    return Trained(folder / "run", folder / "images", aligned)


@pytest.fixture(scope="module")
def both(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tiny_model, tmp_path_factory.mktemp("both"), "both", dim=6)


def paths_of(found: Trained) -> list[Path]:
    return [found.images / f"{name}.png" for name in found.aligned.image_ids]


def test_a_lora_run_encodes_as_it_is_evaluated(both: Trained, tiny_model: Tiny) -> None:
    model = AlignedModel.open(both.run)
    assert model.modalities == ("image", "text")
    assert model.lora == ("image", "text")
    images, texts = model.encode_image(paths_of(both)), model.encode_text(both.aligned.captions or ())
    assert images.dtype == np.float32
    assert images.shape == (len(both.aligned.image), model.dim)
    np.testing.assert_allclose(images, both.aligned.image, atol=1e-5)
    np.testing.assert_allclose(texts, both.aligned.text, atol=1e-5)
    frozen = open_encoder(f"hf:{tiny_model('bert')}", "text").encode(list(CAPTIONS))
    assert (model.features_text(CAPTIONS) - frozen).abs().max() > 1e-3
    model.merge_lora()
    np.testing.assert_allclose(model.encode_image(paths_of(both)), images, atol=1e-5)


def test_a_lora_run_is_indexed_searched_and_served(both: Trained, tiny_model: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    run = tmp_path / "run"
    shutil.copytree(both.run, run, symlinks=True)
    data = tmp_path / "data"
    data.mkdir()
    for path in paths_of(both):
        shutil.copy(path, data)
    given = (open_encoder(f"hf:{tiny_model('clip')}", "image"),)  # frozen: must not replace the trained one
    build_index(str(data), tmp_path / "ix", str(run), encoders=given)
    shutil.rmtree(run)
    index = Index.open(tmp_path / "ix", given)
    rows = {Path(row.path).name: vector for row, vector in _rows(index)}
    for image_id, wanted in zip(both.aligned.image_ids, both.aligned.image, strict=True):
        torch.testing.assert_close(rows[f"{image_id}.png"], wanted, atol=1e-5, rtol=0)
    for path in paths_of(both):
        assert Path(index.search(path, k=1)[0].path).name == path.name
    best = index.search(CAPTIONS[0], k=len(rows), calibrated=False)
    cosines = torch.from_numpy(index.model.encode_text([CAPTIONS[0]])[0]) @ both.aligned.image.T
    assert [hit.cosine for hit in best] == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-5)
    client = _client(index)
    sent = client.post("/api/search/image", content=paths_of(both)[1].read_bytes(), params={"k": 1})
    assert sent.json()["results"][0]["id"] == index.search(paths_of(both)[1], k=1)[0].id
    changed = tmp_path / "ix/aligner/text_lora/adapter_model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match="not the aligner"):
        Index.open(tmp_path / "ix")


def _rows(index: Index) -> Any:
    vectors, rows = index.space("aligned").vectors["image"], index.space("aligned").rows["image"]
    return zip(index.items.by_row("image", rows.tolist()), vectors, strict=True)


def _client(index: Index) -> Any:
    testing = pytest.importorskip("starlette.testclient")
    return testing.TestClient(make_app(index, ServeSettings()), base_url="http://127.0.0.1")


def test_a_lora_run_is_exported_for_the_hub(both: Trained, tmp_path: Path) -> None:
    export(both.run, tmp_path / "hub", "hub", "mit")
    card = (tmp_path / "hub/README.md").read_text()
    assert "listed: 10 images, 10 captions" in card
    assert "| mean_recall@10 |" in card  # validation metrics from run.json
    again = AlignedModel.open(tmp_path / "hub")
    assert again.fingerprint == AlignedModel.open(both.run).fingerprint
    np.testing.assert_allclose(again.encode_text(both.aligned.captions or ()), both.aligned.text, atol=1e-5)


class Recorder:
    """Decoder that records its embeddings."""

    def __init__(self, contract: Contract) -> None:
        self.contract, self.side = contract, 8
        self.seen: list[Tensor] = []

    def decode(self, embeddings: Tensor, sampling: Sampling, negative: Tensor | None) -> list[list[Image.Image]]:
        self.seen.append(embeddings)
        return [[Image.new("RGB", (8, 8))] for _ in embeddings]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Encoder], Recorder]:
    def make(encoder: Encoder) -> Recorder:
        info = encoder.info
        contract = Contract("tiny", info.dim, info.id, info.fingerprint, norm=5.0, negative=torch.ones(info.dim))
        made = Recorder(contract)
        monkeypatch.setattr(generate_module, "open_decoder", lambda name: made)
        monkeypatch.setattr(generate_module, "read_contract", lambda name: contract)
        monkeypatch.setattr(generate_module, "default_sampling", lambda name: Sampling())
        return made

    return make


def test_a_lora_run_is_drawn_from(
    tiny_model: Tiny, tmp_path: Path, decoder: Callable[[Encoder], Recorder], both: Trained
) -> None:
    found = trained(tiny_model, tmp_path, "text", image_adapter="standardise", text_adapter="mlp")
    drawn = decoder(open_encoder(f"hf:{tiny_model('clip')}", "image"))
    generate(GenerationRequest(found.aligned.captions or ()), run=found.run, decoder="tiny")
    (raw,) = drawn.seen
    aligner = AlignedModel.open(found.run).aligner
    torch.testing.assert_close(aligner.encode_image(raw), found.aligned.text, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="image_adapter=standardise"):
        generate(GenerationRequest(CAPTIONS), run=both.run, decoder="tiny")


@pytest.mark.parametrize("side", [96, 224, 384])
def test_same_pixels_on_every_route(
    side: int, tmp_path: Path, decoder: Callable[[Encoder], Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JPEG of more than 2,000 px and an SVG have the same features on every route."""
    pytest.importorskip("lancedb")
    torch.manual_seed(0)
    make_clip(tmp_path / "clip", side)
    (tmp_path / "data").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((2600, 1800), Image.Resampling.BILINEAR).save(tmp_path / "data/photo.jpg")
    (tmp_path / "data/drawing.svg").write_text(DRAWING)
    paths = [tmp_path / "data/photo.jpg", tmp_path / "data/drawing.svg"]
    name = f"hf:{tmp_path / 'clip'}"
    image, text = open_encoder(name, "image"), open_encoder(name, "text")
    items = [Item(path.name, path, ("a red cat",), path.name, "train") for path in paths]
    store = embed(Listed(items), image, text, tmp_path / "store", ExtractSettings(workers=0, dtype="float32"))
    index, _ = build_index(str(tmp_path / "data"), tmp_path / "ix", name)
    drawn = decoder(image)
    for path in paths:
        generate(GenerationRequest(image=path), decoder="tiny")
    routes = {
        "embed": store.rows("image", store.rows_of("image", "train")),
        "train": TrainableStore.open(store, LoRAConfig(sides="image")).features("train").image,
        "query": torch.stack([index.features(path) for path in paths]),
        "embeddings": torch.tensor(AlignedEmbeddings.open(name).embed_image(paths)),
        "generate": torch.cat(drawn.seen),
        "model": AlignedModel.open(name).features_image(paths),
    }
    indexed = {Path(row.path).name: vector for row, vector in _rows(index)}
    routes["index"] = torch.stack([indexed[path.name] for path in paths])
    wanted = normalize(image.encode([image.prepare(load_image(path, side)) for path in paths]), dim=1)
    for route, found in routes.items():
        assert (normalize(found, dim=1) - wanted).abs().max() < 1e-6, route
    upload = read_upload(paths[0].read_bytes(), index.model.image_size)
    torch.testing.assert_close(normalize(index.features(upload), dim=0), wanted[0], atol=1e-6, rtol=0)
    if side != 224:
        other = normalize(image.encode([image.prepare(load_image(path, 224)) for path in paths]), dim=1)
        assert ((other - wanted).abs().amax(dim=1) > 1e-4).all()  # else the test is void


def test_exported_folders_see_the_same_pixels(tiny_model: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers.base", reason="images need sentence-transformers 5.4")
    st = pytest.importorskip("sentence_transformers")
    found = trained(tiny_model, tmp_path, "both", "clip", text_adapter="linear", image_adapter="linear", dim=6)
    export(found.run, tmp_path / "st", "sentence-transformers")
    model, paths = AlignedModel.open(found.run), paths_of(found)
    there = st.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    images = [load_image(path, model.image_size) for path in paths]
    np.testing.assert_allclose(there.encode(images), model.encode_image(paths), atol=2e-5)
    np.testing.assert_allclose(there.encode(list(CAPTIONS)), model.encode_text(CAPTIONS), atol=2e-5)


def test_two_towers_without_an_aligner(tiny_model: Tiny, both: Trained, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_model("clip")
    model = AlignedModel.open(f"hf:{folder}")
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    texts = transformers.AutoTokenizer.from_pretrained(folder)(list(CAPTIONS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = clip.text_projection(clip.text_model(**texts).pooler_output)
    np.testing.assert_allclose(model.encode_text(CAPTIONS), normalize(wanted, dim=1), atol=1e-5)
    assert model.dim == 12
    assert model.modalities == ("image", "text")
    model.save(tmp_path / "saved")
    again = AlignedModel.open(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint != AlignedModel.open(both.run).fingerprint
    np.testing.assert_array_equal(again.encode_image(paths_of(both)), model.encode_image(paths_of(both)))


def test_one_tower_and_pairs_of_encoders(tiny_model: Tiny) -> None:
    alone = AlignedModel.open(f"hf:{tiny_model('bert')}")
    assert alone.modalities == ("text",)
    np.testing.assert_allclose(np.linalg.norm(alone.encode_text(CAPTIONS), axis=1), 1, atol=1e-6)
    with pytest.raises(InputError, match="no image encoder"):
        alone.encode_image(["x.png"])
    pair = AlignedModel.open((f"hf:{tiny_model('dinov2')}", f"hf:{tiny_model('bert')}"))
    assert pair.modalities == ("image", "text")
    with pytest.raises(InputError, match="different dimensions"):
        AlignedModel.open((f"hf:{tiny_model('clip')}", f"hf:{tiny_model('bert')}"))


def test_images_in_memory_equal_their_files(both: Trained, tmp_path: Path) -> None:
    model = AlignedModel.open(both.run)
    clear = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 11, 20))
    clear.save(tmp_path / "clear.png")
    turned, exif = Image.new("RGB", (40, 20), "blue"), Image.Exif()
    turned.paste("white", (0, 0, 9, 20))
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "clear.png", tmp_path / "turned.png"]
    opened = [Image.open(path) for path in paths]
    np.testing.assert_allclose(model.encode_image(opened), model.encode_image(paths), atol=1e-6)
    np.testing.assert_array_equal(model.encode_image([str(path) for path in paths]), model.encode_image(paths))


def test_batches_change_nothing_and_nothing_gives_no_rows(both: Trained) -> None:
    model = AlignedModel.open(both.run)
    whole = model.encode_image(paths_of(both))
    np.testing.assert_allclose(model.encode_image(paths_of(both), batch_size=1), whole, atol=1e-6)
    assert model.encode_text([]).shape == (0, model.dim)
    assert model.encode_image([]).shape == (0, model.dim)


def test_an_older_run_is_read_with_its_store(tiny_model: Tiny, tmp_path: Path) -> None:
    """csaligner 0.1 wrote no encoders to run.json, and no encoders.json to an index."""
    encoders = (open_encoder(f"hf:{tiny_model('clip')}", "image"), open_encoder(f"hf:{tiny_model('bert')}", "text"))
    store = embed(Listed(draw(tmp_path / "images")), *encoders, tmp_path / "store", ExtractSettings(workers=0))
    train(store, build_config(TrainConfig, FAST | {"dim": 4}), tmp_path / "run")
    wanted = AlignedModel.open(tmp_path / "run").encode_text(CAPTIONS)
    record = read_record(tmp_path / "run")
    assert {"encoders", "data", "metrics"} <= set(record)
    old = {key: value for key, value in record.items() if key not in {"encoders", "data", "metrics"}}
    write_sealed(tmp_path / "run" / RECORD, old)
    model = AlignedModel.open(tmp_path / "run")
    np.testing.assert_array_equal(model.encode_text(CAPTIONS), wanted)
    export(tmp_path / "run", tmp_path / "hub", "hub")
    shutil.rmtree(store.path)
    with pytest.raises(InputError, match="trained on text features"):
        AlignedModel.open(tmp_path / "run").encode_text(CAPTIONS)
    named = AlignedModel.open(tmp_path / "run", [f"hf:{tiny_model('bert')}"])
    np.testing.assert_array_equal(named.encode_text(CAPTIONS), wanted)


def test_an_index_without_encoders_json_opens(world: Any, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    world.picture("red.png", (255, 0, 0))
    build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)
    (tmp_path / "ix/aligner/encoders.json").unlink()
    assert Index.open(tmp_path / "ix", world.encoders).search("255 0 0", k=1)[0].path.endswith("red.png")


def test_threads_share_one_encoder(both: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def count(name: str, modality: Any = None) -> Encoder:
        opened.append(name)
        return open_encoder(name, modality)

    monkeypatch.setattr(module, "open_encoder", count)
    model = AlignedModel.open(both.run)
    found: list[Any] = [None] * 4

    def work(i: int) -> None:
        found[i] = model.encode_text(CAPTIONS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert all(np.array_equal(rows, found[0]) for rows in found)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "no such folder"), (".", "not a run folder"), ("hf:./nowhere", "no such folder")],
)
def test_what_is_no_model_is_one_line(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        AlignedModel.open(name)


def test_wrong_inputs_are_one_line(both: Trained, tiny_model: Tiny, tmp_path: Path) -> None:
    model = AlignedModel.open(both.run)
    with pytest.raises(InputError, match="string"):
        model.encode_text("a red cat")
    with pytest.raises(InputError, match="batch_size"):
        model.encode_text(CAPTIONS, batch_size=0)
    with pytest.raises(ImageError, match="no such file"):
        model.encode_image([tmp_path / "gone.png"])
    with pytest.raises(InputError, match="trained on image features"):
        AlignedModel.open(both.run, [f"hf:{tiny_model('dinov2')}"])
