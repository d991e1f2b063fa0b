"""The commands demo, train, eval and gap: train adapters and measure the result."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from csaligner.checks import InputError, check_choice
from csaligner.names import Names

from .common import MEASURE, TRAIN, Json, Quiet, app, err, print_json
from .joint import evaluate_spaces, holds_spaces, is_joint, train_spaces
from .reader_options import ImageArray, TextArray

if TYPE_CHECKING:
    from csaligner.pipeline import Run
    from csaligner.reporting.record import MethodResult
    from csaligner.store.store import Store


@app.command(rich_help_panel=MEASURE)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the stores, results.json and report.html.")] = Path("runs/demo"),
    data: Annotated[str, typer.Option(help="A dataset: openmoji, tuxpaint, openclipart or all.")] = "openmoji",
    seeds: Annotated[int, typer.Option(min=1, help="Number of training seeds.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode images.")] = 2,
    quiet: Quiet = False,
) -> None:
    """Show the modality gap of contrastive training on emoji or drawings, and what closes it."""
    from csaligner.demo import demo as run_demo
    from csaligner.reporting.tables import print_table

    found, console = run_demo(out, data, seeds, workers=workers, console=err, quiet=quiet), Console()
    for part in (found.all_pairs, found.few_pairs):
        console.print(f"{part.pairs:,} training pairs", highlight=False)
        print_table(part.results, console)
    for finding in found.findings:
        console.print(f"- {finding}", highlight=False)
    console.print(f"report: {out / 'report.html'}", highlight=False)


def _names_setting(names: str, data: str) -> str:
    """Return the setting of the names of a store. Raises InputError for more than two."""
    if names.count(",") > 1:
        raise InputError(
            f"names: got {names} for {data}, which holds no spaces; give a folder with one NAME.npy for each, an .npz "
            "or a .parquet file"
        )
    return f"names=[{names}]"


@app.command(rich_help_panel=TRAIN)
def train(  # noqa: PLR0913, PLR0917  (the names are open_clip's)
    train_data: Annotated[
        str,
        typer.Option(
            help="The store to train on, a folder or its s3:// URL, as for all stores; or three or more named spaces: "
            "a .npz or .parquet file, or a folder of .npy files with ids in NAME.txt (docs/diagnose.md)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run in it resumes.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings that override the config.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Names of the spaces, separated by commas; default: image,text, or the source's.")
    ] = None,
    val_data: Annotated[
        str | None, typer.Option(help="Validate on all pairs of this store; default: the val split.")
    ] = None,
    unpaired_images: Annotated[
        list[str] | None, typer.Option(help="A store of images without captions to train on; repeatable.")
    ] = None,
    unpaired_texts: Annotated[
        list[str] | None, typer.Option(help="A store of texts without images to train on; repeatable.")
    ] = None,
    weight: Annotated[
        str | None, typer.Option(help="Weight lambda of the Cauchy-Schwarz divergence: a number or auto; default: 1.")
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(help="Kernel bandwidth sigma: a number, median, median-cross or temperature; default: 0.5."),
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="Initial logit scale (1 / temperature) of InfoNCE; default: 1 / 0.07.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch, all processes together.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Training epochs; 0: untrained baseline; default: 40, fewer for many pairs."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: 3e-4.")] = None,
    wd: Annotated[float | None, typer.Option(help="Weight decay; default: 0.05.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Warm-up steps; default: a tenth of the run.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Number format of the computation.", metavar="[fp32|bf16]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; default: 0.")] = None,
    impl: Annotated[
        str | None, typer.Option(help="Implementation of the loss.", metavar="[auto|reference|tiled|mixed|triton]")
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="Also train inside these encoders.", metavar="[text|image|both]")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA updates; default: 8.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of batches to read ahead.")] = 2,
    resume: Annotated[str, typer.Option(help="latest, or a checkpoint folder to start from.")] = "latest",
    resume_from: Annotated[
        str | None,
        typer.Option(
            help="A run folder or its URL: add these pairs to its pairs and fit its choices again, without trials. The "
            "joined pairs are written to OUT-pairs."
        ),
    ] = None,
    report_to: Annotated[str, typer.Option(help="Loggers: tensorboard, wandb, trackio; comma-separated.")] = "",
    quiet: Quiet = False,
) -> None:
    """Train adapters on a store and evaluate them on its test split; also under torchrun and accelerate launch."""
    from csaligner.config import TrainConfig, load_config
    from csaligner.distributed.processes import is_main, join_processes
    from csaligner.pipeline import train as run_train
    from csaligner.progress import progress
    from csaligner.remote import local
    from csaligner.run_folder import CONFIG
    from csaligner.store.store import Store
    from csaligner.training.trainer import RunOptions
    from csaligner.training.training_data import TrainingData

    flags: dict[str, object] = {"batch_size": batch_size, "epochs": epochs, "lr": lr, "wd": wd, "warmup": warmup}
    flags |= {"weight": weight, "bandwidth": bandwidth, "logit_scale": logit_scale}
    flags |= {"seed": seed, "lora.sides": lora, "lora.rank": lora_rank, "impl": impl}
    words = [f"{k}={v}" for k, v in (flags | {"precision": precision}).items() if v is not None]
    several = holds_spaces(local(train_data))
    if names is not None and not several:
        words.append(_names_setting(names, train_data))
    earlier = None if resume_from is None else local(resume_from)
    if earlier is not None and config is None:
        config = earlier / CONFIG
    settings = load_config(TrainConfig, config, [*words, *(overrides or [])])
    if several:
        given = {"val_data": val_data, "unpaired_images": unpaired_images, "unpaired_texts": unpaired_texts}
        for name, value in (given | {"resume_from": resume_from}).items():
            if value is not None:
                raise InputError(f"{name}: needs a store as --train-data, and {train_data} is none; import it first")
        train_spaces(train_data, names, settings, out, quiet=quiet)
        return
    images, texts = (tuple(map(Store.open, paths or ())) for paths in (unpaired_images, unpaired_texts))
    store, val = Store.open(train_data), Store.open(val_data) if val_data else None
    join_processes()
    if earlier is not None:
        store = _joined(earlier, store, out)
    data = TrainingData(store, val, images, texts)
    trackers = tuple(name.strip() for name in report_to.split(",") if name.strip())
    options = RunOptions(workers, trackers, None if resume == "latest" else Path(resume))
    with progress(err, "train", quiet or not is_main()) as update:
        run = run_train(data, settings, out, update, options, earlier)
    if is_main():
        _print_run(run, out, store, Names.of(settings.names), quiet=quiet)


def _joined(earlier: Path, store: Store, out: Path) -> Store:
    """Return the pairs of an earlier run and of a store as a new store, OUT-pairs."""
    from csaligner.distributed.processes import world_size
    from csaligner.run_folder import training_store
    from csaligner.spaces.joined import join_stores

    if world_size() > 1:
        raise InputError("resume_from: runs on one process; start it without torchrun")
    return join_stores(training_store(earlier), store, out.with_name(f"{out.name}-pairs"))


def _print_run(run: Run, out: Path, pairs: Store, names: Names, *, quiet: bool) -> None:
    """Print what was chosen on the training pairs, the metrics of the test split and what they mean."""
    from csaligner.pipeline import equal_methods, evaluate_run, held_out
    from csaligner.reporting.tables import print_table
    from csaligner.run_folder import REPORT

    if run.selection is not None and not quiet:
        err.print(run.selection.line_of(names), highlight=False, soft_wrap=True)
    results = evaluate_run(out, "test", pairs)
    print_table(results, Console(), names, equal_methods(out))
    _say_sample(results, pairs)
    for line in held_out(results, pairs.counts["test"][0], run).lines_of(names):
        err.print(line, highlight=False, soft_wrap=True)
    err.print(f"report: {out / REPORT}", highlight=False, soft_wrap=True)


@app.command("eval", rich_help_panel=MEASURE)
def evaluate(  # noqa: PLR0913, PLR0917  (options of a command)
    run: Annotated[
        str, typer.Option(help="A run folder or its URL; with --mixbench also a saved aligner, bundled or an encoder.")
    ],
    split: Annotated[str, typer.Option(help="Split to evaluate.", metavar="[train|val|test]")] = "test",
    val_data: Annotated[
        str | None, typer.Option(help="Evaluate on this store of the same encoders; default: the training store.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="generation: images from captions.", metavar="[retrieval|generation]")
    ] = "retrieval",
    decoder: Annotated[str, typer.Option(help="generation: the decoder, as in `generate`.")] = "micro",
    feature_encoder: Annotated[
        str, typer.Option(help="generation: the encoder whose features are compared.")
    ] = "bundled:efficientnet-lite0",
    limit: Annotated[int | None, typer.Option(min=2, help="generation: number of captions to draw.")] = None,
    dims: Annotated[
        int, typer.Option(min=0, help="generation: number of principal dimensions of the Frechet distance; 0: all.")
    ] = 64,
    force: Annotated[bool, typer.Option(help="generation: allow FID with fewer images than dimensions.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="generation: number of denoising steps; default: the decoder's.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="generation: guidance scale; default: the decoder's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="generation: random seed of the noise.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Measure all images; default: at most 20,000, evenly spaced.")
    ] = False,
    mixbench: Annotated[
        Path | None, typer.Option(help="Measure search in MixBench instead: its folder, or that of one set.")
    ] = None,
    image_weight: Annotated[
        float, typer.Option(help="mixbench: weight of the image in items and queries with image and text.")
    ] = 0.5,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run: recall, mixed search and modality gap, beside untrained baselines; or its generated images; or
    its search in MixBench."""
    from csaligner.remote import changed
    from csaligner.types import SPLITS

    if mixbench is not None:
        _mixbench(run, mixbench, image_weight, quiet=quiet, as_json=as_json)
        return

    check_choice("split", split, SPLITS)
    check_choice("task", task, ("retrieval", "generation"))
    with changed(run) as folder:  # results.json and report.html are written there
        if is_joint(folder):
            check_choice("task", task, ("retrieval",))
            evaluate_spaces(folder, split, val_data, as_json=as_json)
        elif task == "retrieval":
            _retrieval(folder, split, val_data, full=full, as_json=as_json)
        else:
            from csaligner.decoders.decoder import default_sampling
            from csaligner.generation.evaluate import MeasuringProtocol, evaluate_run_generation
            from csaligner.store.store import Store

            protocol = MeasuringProtocol(split, limit, dims or None, force)  # type: ignore[arg-type]
            sampling = default_sampling(decoder, seed=seed, steps=steps, guidance=guidance)
            store = Store.open(val_data) if val_data else None
            found = evaluate_run_generation(folder, decoder, feature_encoder, protocol, sampling, store)
            print(json.dumps(found, indent=2) if as_json else "\n".join(f"{k:28} {v}" for k, v in found.items()))


def _retrieval(run: Path, split: str, val_data: str | None, *, full: bool, as_json: bool) -> None:
    """Measure retrieval and gap of a run, write both files and print the results."""
    from csaligner.pipeline import equal_methods, evaluate_run
    from csaligner.reporting.tables import print_table
    from csaligner.run_folder import RESULTS, read_config, training_store
    from csaligner.store.store import Store

    store = Store.open(val_data) if val_data else None
    results = evaluate_run(run, split, store, full=full)  # type: ignore[arg-type]
    _say_sample(results, store or training_store(run))
    if as_json:
        print((run / RESULTS).read_text(encoding="utf-8"))
    else:
        print_table(results, Console(), Names.of(read_config(run).names), equal_methods(run))


def _mixbench(name: str, data: Path, image_weight: float, *, quiet: bool, as_json: bool) -> None:
    """Measure nDCG@10 on MixBench and print it, beside published results."""
    from csaligner.datasets.mixbench import read_mixbench
    from csaligner.encoders import is_encoder_name
    from csaligner.model import AlignedModel
    from csaligner.progress import progress
    from csaligner.remote import local
    from csaligner.reporting.mixbench import print_mixbench
    from csaligner.run_folder import RECORD, training_store
    from csaligner.search.mixbench import calibration_pairs, measure_mixbench, mixbench_record

    run = Path(name) if is_encoder_name(name) else local(name)
    if is_joint(run):
        raise InputError(f"run: {run} is a run of named spaces, which have no encoders; give a run of a store")
    sets, model = read_mixbench(data), AlignedModel.open(run)
    try:
        pairs = calibration_pairs(model, training_store(run)) if (run / RECORD).is_file() else None
    except InputError:  # the store was moved or deleted
        pairs = None
    if pairs is None and not quiet:
        err.print("GR-CLIP is skipped: its means are those of the training pairs of a run folder", highlight=False)
    with progress(err, "mixbench", quiet) as update:
        results = measure_mixbench(model, sets, image_weight=image_weight, calibration=pairs, progress=update)
    record = mixbench_record(results, image_weight)
    if as_json:
        print_json(record)
    else:
        print_mixbench(record, Console())


def _say_sample(results: Sequence[MethodResult], store: Store) -> None:
    """Say on stderr that a sample was measured, if so."""
    from csaligner.pipeline import sample_of

    line = sample_of(results, store)
    if line is not None:
        err.print(f"{line}; csaligner eval --full measures all", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=MEASURE, hidden=True)
def gap(
    image_features: Annotated[
        str, typer.Option(help="Feature file or its URL, (N, d): .npy, .npz, .safetensors or .parquet.")
    ],
    text_features: Annotated[str, typer.Option(help="Feature file, (N, d); row i pairs with row i.")],
    image_key: ImageArray = None,
    text_key: TextArray = None,
    bandwidth: Annotated[float, typer.Option(help="Kernel bandwidth sigma, on unit vectors.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Measure the modality gap between two feature files; `csaligner diagnose` tests and explains it."""
    from csaligner.evaluation.gap import gap_metrics
    from csaligner.store.read_features import load_features

    image, text = (
        load_features(image_features, image_key, "image_key"),
        load_features(text_features, text_key, "text_key"),
    )
    metrics = gap_metrics(image, text, bandwidth=bandwidth)
    if as_json:
        print(json.dumps({k: v if math.isfinite(v) else None for k, v in metrics.items()}, indent=2))
    else:
        for name, value in metrics.items():
            print(f"{name:24} {value:.4f}")
