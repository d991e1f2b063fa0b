"""Recipes: published experiments as configuration, compared with the reported values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store

from .config import Strict, TrainConfig, load_config
from .cost import CostConfig
from .files import write_json, write_text
from .locks import refuse_links
from .pipeline import embed_dataset, evaluate_run, train
from .run_folder import OURS, provenance

Report = Callable[[str, int, int], None]
TestName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # part of a folder's name
JSON, TABLE = "paper_vs_ours.json", "paper_vs_ours.md"


class DataConfig(Strict):
    """data: name or path for open_dataset; data_format, options: arguments of its reader."""

    data: str
    data_format: str | None = None
    options: Mapping[str, Any] = Field(default_factory=dict)


class TestConfig(DataConfig):
    """paper: reported values by csaligner metric name, as fractions; rivals: the same for other methods."""

    paper: Mapping[str, float] = Field(default_factory=dict)
    rivals: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)


class Recipe(Strict):
    """One row of a published table. source: reference; choices: settings the paper does not specify; cost: sizes for
    cost_table."""

    name: str
    source: str
    image_encoder: str
    text_encoder: str
    train: DataConfig
    tests: Mapping[TestName, TestConfig]
    config: TrainConfig = TrainConfig()
    choices: Sequence[str] = ()
    cost: CostConfig | None = None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML with `key=value` overrides such as train.data=/data/cc3m. Raises InputError."""
    return load_config(Recipe, path, overrides)


def run_recipe(
    recipe: Recipe, out: Path, settings: ExtractSettings | None = None, report: Report = lambda what, done, total: None
) -> dict[str, dict[str, float]]:
    """Embed, train and evaluate on every test set; returns test set -> metrics. Finished steps are reused. Writes
    paper_vs_ours.json and .md to `out`. Raises InputError."""
    refuse_links(out)
    store = _store(recipe, recipe.train, out / "store-train", settings, report)
    train(store, recipe.config, out / "run", lambda step, total, values: report("train", step, total))
    found = {}
    for name, test in recipe.tests.items():
        theirs = _store(recipe, test, out / f"store-{name}", settings, report)
        ours = next(r for r in evaluate_run(out / "run", "test", theirs) if r.name == OURS)
        found[name] = dict(ours.metrics)
    record = {"provenance": provenance(recipe.config.seed), "recipe": recipe.model_dump(mode="json"), "ours": found}
    write_json(out / JSON, record)
    write_text(out / TABLE, table(recipe, found))
    return found


def table(recipe: Recipe, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of reported and reproduced values in percent; "-" = not measured."""
    lines = [
        f"# {_plain(recipe.name)}",
        "",
        _plain(recipe.source),
        "",
        "| test set | metric | paper | ours |",
        "| --- | --- | --- | --- |",
    ]
    for name, test in recipe.tests.items():
        for metric, value in test.paper.items():
            ours = found.get(name, {}).get(metric)
            shown = "-" if ours is None else f"{100 * ours:.1f}"
            lines.append(f"| {name} | {_plain(metric)} | {100 * value:.1f} | {shown} |")
        for rival, values in test.rivals.items():
            for metric, value in values.items():
                lines.append(f"| {name} | {_plain(f'{metric} ({rival})')} | {100 * value:.1f} | |")
    lines += ["", "Settings not specified in the paper:", "", *(f"- {_plain(choice)}" for choice in recipe.choices)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text of a recipe for Markdown: one line, without HTML."""
    return escape(" ".join(text.split()), quote=False)


def _store(recipe: Recipe, data: DataConfig, folder: Path, settings: ExtractSettings | None, report: Report) -> Store:
    options = dict(data.options) | ({"data_format": data.data_format} if data.data_format else {})
    return embed_dataset(
        data.data,
        folder,
        encoders=(recipe.image_encoder, recipe.text_encoder),
        options=options,
        settings=settings,
        progress=lambda done, total, *_: report(f"embed {folder.name}", done, total),
    )
