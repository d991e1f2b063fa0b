"""Text vectors as services send them, cut and quantised, beside image vectors: search after alignment, by format.

CSALIGNER_SHARED=PATH python benchmarks/service_vectors.py --store STORE [--folds 3]

Every row goes through files: written as a service answers, read by `import_features`, fitted, exported, and the test
pairs searched with the exported files. PATH/data/clip_coco_500.npy: 500 pairs of CLIP, folds as in clip_coco.py. STORE:
`csaligner embed --data openmoji --out STORE` (EfficientNet-Lite0 and MiniLM; train and test split).

No vectors of a service are at hand. Texts of 3,072 dimensions are made of real ones (`widened`): the first 256 are the
256 leading directions of the training texts, rotated; the other 2,816 are all directions again, rotated, with as much
energy. Both maps are linear and orthonormal, the spectrum decays, and no cut is free. "CLIP, as it is" cuts the 512
dimensions of CLIP, which was not trained for it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from table_text import RESULTS

from csaligner.estimator import CSAligner
from csaligner.evaluation.mixed_search import mixed_search_per_query
from csaligner.evaluation.retrieval import retrieval_per_query
from csaligner.export import export_aligner
from csaligner.files import write_json
from csaligner.paired_features import first_captions
from csaligner.run_folder import provenance
from csaligner.store import Store, load_features
from csaligner.store.import_features import FeatureFiles, import_features
from csaligner.types import PairedFeatures

Array = NDArray[Any]
WIDTH, HEAD = 3072, 256
UNTRAINED: dict[str, Any] = {"epochs": 0, "image_adapter": "linear", "text_adapter": "linear"}
FORMATS: Mapping[str, tuple[str, str]] = {  # suffix and --text-dtype
    "float32, base64": (".jsonl", "auto"),
    "float16": (".npy", "auto"),
    "int8, a scale per vector": (".json", "auto"),
    "int8, a scale per column": (".jsonl", "int8"),
    "uint8, a scale per column": (".json", "uint8"),
    "ubinary": (".json", "auto"),
}
SHORT = ("float32, base64", "int8, a scale per vector")


def widened(texts: Array, train: Array, seed: int = 0) -> Array:
    """Return (N, 3072) unit rows made of `texts` (N, d), d >= 256; `train`: the rows whose directions are ordered."""
    rng = np.random.default_rng(seed)
    x = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    directions = x @ np.linalg.svd(x[train], full_matrices=True)[2].T
    head = np.linalg.qr(rng.normal(size=(HEAD, HEAD)))[0]
    tail = np.linalg.qr(rng.normal(size=(WIDTH - HEAD, x.shape[1])))[0].T
    made = np.concatenate([directions[:, :HEAD] @ head, directions @ tail], axis=1)
    unit: Array = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return unit


def write(rows: Array, form: str, ranges: tuple[Array, Array], path: Path) -> None:
    """Write rows (N, d) as a service sends them. ranges: the least and the largest number of each column."""
    if form == "float16":
        np.save(path, rows.astype(np.float16))
        return
    least, largest = ranges
    columns = form.endswith("column")
    steps = np.clip(np.round((rows - least) / (largest - least) * 255), 0, 255) if columns else rows
    if form == "int8, a scale per vector":  # Cohere
        whole = np.round(127 * rows / np.abs(rows).max(axis=1, keepdims=True)).astype(int)
        path.write_text(json.dumps({"embeddings": {"int8": whole.tolist()}}), encoding="utf-8")
    elif form == "ubinary":
        path.write_text(json.dumps({"embeddings": {"ubinary": np.packbits(rows > 0, axis=1).tolist()}}))
    elif form == "uint8, a scale per column":
        path.write_text(json.dumps(steps.astype(int).tolist()), encoding="utf-8")
    else:  # OpenAI, Voyage: base64, one answer per line
        numbers = rows.astype("<f4") if form == "float32, base64" else (steps - 128).astype(np.int8)
        with path.open("w", encoding="utf-8") as file:
            for at in range(0, len(numbers), 100):
                words = [base64.b64encode(row.tobytes()).decode() for row in numbers[at : at + 100]]
                data = [{"index": n, "embedding": word} for n, word in enumerate(words)]
                file.write(json.dumps({"data": data}) + "\n")


def searched(
    train: PairedFeatures, test: PairedFeatures, form: str, cut: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Write, read, fit, export and search; returns metrics of the test pairs in percent."""
    suffix, dtype = FORMATS[form]
    began = time.process_time()
    least, largest = train.text.numpy().min(axis=0)[:cut], train.text.numpy().max(axis=0)[:cut]
    early = form != "float32, base64"  # others are quantised after the cut, as services do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, pairs in (("train", train), ("test", test)):
            np.save(folder / f"image-{part}.npy", pairs.image.numpy())
            owners = "\n".join(pairs.image_ids[row] for row in pairs.text_to_image.tolist())
            (folder / f"owners-{part}.txt").write_text(owners, encoding="utf-8")
            (folder / f"ids-{part}.txt").write_text("\n".join(pairs.image_ids), encoding="utf-8")
            rows = pairs.text.numpy()[:, :cut] if early else pairs.text.numpy()
            write(rows, form, (least, largest), folder / f"text-{part}{suffix}")
        files = FeatureFiles(
            folder / "image-train.npy",
            folder / f"text-train{suffix}",
            image_ids=folder / "ids-train.txt",
            text_image_ids=folder / "owners-train.txt",
            cuts=(None, None if early else cut),
            dtypes=("auto", dtype),
        )
        pairs = import_features(files, folder / "store").features()
        model = CSAligner(verbose=False, **settings).fit_features(pairs).model
        export_aligner(model, folder / "adapters", "onnx" if settings == {} else "npz")
        text = load_features(folder / f"text-test{suffix}", dtype=dtype).numpy()
        mapped = [
            torch.from_numpy(by_export(folder / "adapters", side, rows))
            for side, rows in (("image", test.image.numpy()), ("text", text if early else text[:, :cut]))
        ]
    found = PairedFeatures(mapped[0], mapped[1], test.text_to_image, test.image_ids)
    return metrics(found) | {"seconds": time.process_time() - began}


def by_export(folder: Path, side: str, rows: Array) -> Array:
    """Map rows (N, d) with an exported adapter, as its README says."""
    x = rows.astype(np.float32)
    if (folder / f"{side}.onnx").is_file():
        session = onnxruntime.InferenceSession(str(folder / f"{side}.onnx"), providers=["CPUExecutionProvider"])
        mapped: Array = session.run(None, {"features": x})[0]
        return mapped
    arrays = np.load(folder / f"{side}.npz")
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = (x - arrays["mean"]) @ arrays["map"] + arrays["offset"]
    unit: Array = y / np.linalg.norm(y, axis=1, keepdims=True)
    return unit


def metrics(found: PairedFeatures) -> dict[str, float]:
    recall, mixed = retrieval_per_query(found), mixed_search_per_query(found)
    values = {
        "image_to_text_recall@1": recall["image_to_text"]["recall@1"],
        "text_to_image_recall@1": recall["text_to_image"]["recall@1"],
        "mixed_ndcg@10/image_query": mixed["mixed_ndcg@10/image_query"],
        "mixed_ndcg@10": mixed["mixed_ndcg@10"],
    }
    return {name: 100 * float(value.double().mean()) for name, value in values.items()}


def of_clip(path: Path, folds: int) -> list[tuple[PairedFeatures, PairedFeatures]]:
    """(train, test) of each fold of 100 test pairs."""
    image, text = np.load(path).astype(np.float32)
    order = np.random.RandomState(0).permutation(len(image))
    found = []
    for fold in range(folds):
        held = order[fold::5]
        rest = np.setdiff1d(order, held)
        found.append((pairs_of(image[rest], text[rest]), pairs_of(image[held], text[held])))
    return found


def pairs_of(image: Array, text: Array) -> PairedFeatures:
    ids = tuple(map(str, range(len(image))))
    return PairedFeatures(torch.from_numpy(image), torch.from_numpy(text), torch.arange(len(image)), ids)


def wide(train: PairedFeatures, test: PairedFeatures) -> tuple[PairedFeatures, PairedFeatures]:
    texts = np.concatenate([train.text.numpy(), test.text.numpy()])
    first = first_captions(train.text_to_image, len(train.image)).numpy()
    made = torch.from_numpy(widened(texts, first))
    return (
        PairedFeatures(train.image, made[: len(train.text)], train.text_to_image, train.image_ids),
        PairedFeatures(test.image, made[len(train.text) :], test.text_to_image, test.image_ids),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "service_vectors.json")
    args = parser.parse_args()
    about = provenance(0)
    clip = of_clip(Path(os.environ["CSALIGNER_SHARED"]) / "data" / "clip_coco_500.npy", args.folds)
    store = Store.open(args.store)
    emoji = [wide(store.features("train"), store.features("test"))]
    widest = [wide(*pairs) for pairs in clip]
    plan = [("MiniLM, 3,072", emoji, form, HEAD, UNTRAINED) for form in FORMATS]
    plan += [("CLIP, 3,072", widest, form, HEAD, UNTRAINED) for form in FORMATS]
    plan += [("CLIP, 3,072", widest, form, HEAD, {}) for form in SHORT]
    plan += [("CLIP, as it is", clip, form, cut, UNTRAINED) for cut in (512, 256, 128) for form in SHORT]
    plan += [("MiniLM, 3,072", emoji, SHORT[0], WIDTH, UNTRAINED)]  # without a cut: minutes per fit
    records = []
    for name, sets, form, cut, settings in plan:
        runs = [searched(train, test, form, cut, settings) for train, test in sets]
        means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        trained = "default" if settings == {} else "untrained"
        records.append({"texts": name, "dims": cut, "format": form, "alignment": trained, "runs": len(runs)} | means)
        print(records[-1], flush=True)
        queries = {"clip": args.folds * 200, "emoji": len(emoji[0][1].image) + len(emoji[0][1].text)}
        write_json(args.out, {"provenance": about, "queries": queries, "records": records})


if __name__ == "__main__":
    main()
