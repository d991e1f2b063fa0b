"""Third-party components: registered by a script or by the entry points of a package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csaligner import CSAligner
from csaligner.checks import InputError
from csaligner.losses.objective import Objective
from csaligner.registry import DIVERGENCES, PAIRED_LOSSES, Registry, load
from csaligner.signatures import adapt_divergence

BUILT_IN = {"own": "csaligner.checks:nearest"}


def installed(folder: Path, lines: str) -> None:
    """Installed files of a package with entry points."""
    info = folder / "more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[csaligner.tests]\n{lines}")
    (folder / "more_things.py").write_text("def thing() -> int:\n    return 7\n")


def test_a_registered_thing_is_found_by_its_name_and_takes_no_name_away() -> None:
    table = Registry("csaligner.tests", BUILT_IN)
    table.register("mine", len)
    assert load("thing", table, "mine") is len
    assert sorted(table) == ["mine", "own"]
    for name in ("own", "mine"):
        with pytest.raises(InputError, match=f"'{name}'"):
            table.register(name, max)
    with pytest.raises(InputError, match=r"^thing: 'mien'.*'mine'"):
        load("thing", table, "mien")


def test_an_installed_package_offers_things_and_cannot_replace_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "theirs = more_things:thing\nown = more_things:thing\nbroken = more_things:nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = Registry("csaligner.tests", BUILT_IN)
    assert "theirs" in table
    assert len(table) == len(list(table)) == 3
    assert "more_things" not in sys.modules
    assert load("thing", table, "theirs")() == 7
    assert load("thing", table, "own").__module__ == "csaligner.checks"
    with pytest.raises(InputError, match=r"'broken'.*more_things:nothing"):
        load("thing", table, "broken")
    with pytest.raises(InputError, match="'theirs'"):
        table.register("theirs", len)


def moment_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.mean(dim=0) - y.mean(dim=0)).square().sum()


class Moments(nn.Module):
    def forward(self, x: Tensor, y: Tensor, *, bandwidth: float) -> Tensor:
        return moment_distance(x, y) / bandwidth**2


def pair_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(dim=1).mean()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries whose registrations are undone after the test."""
    for table in (DIVERGENCES, PAIRED_LOSSES):
        for attribute in ("_known", "_adapted"):
            monkeypatch.setattr(table, attribute, dict(getattr(table, attribute)))


def pairs(n: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=g), torch.randn(n, 4, generator=g) + 0.5


@pytest.mark.usefixtures("own")
def test_a_divergence_of_two_samples_and_nothing_else_trains() -> None:
    DIVERGENCES.register("plain", moment_distance)
    aligner = CSAligner(epochs=2, objective={"terms": {"info_nce": 1.0, "plain": 2.0}})
    x, y = pairs(40)
    assert aligner.fit(x, y).transform_image(x).shape == (40, 4)
    value = Objective({"plain": 1.0})(x, y, 1.0).total
    assert value.item() == pytest.approx(moment_distance(x, y).item())


@pytest.mark.usefixtures("own")
def test_a_divergence_gets_the_keywords_that_it_names() -> None:
    seen: dict[str, Any] = {}

    def curious(x: Tensor, y: Tensor, **given: Any) -> Tensor:
        seen.update(given)
        return moment_distance(x, y)

    DIVERGENCES.register("curious", curious)
    DIVERGENCES.register("module", Moments())
    x, y = pairs()
    ids = torch.arange(12) // 2 * (torch.arange(12) < 6)
    loss = Objective({"curious": 1.0}, bandwidth=[0.5, 2.0], impl="tiled")(x, y, 1.0, ids, ids)
    assert (seen["impl"], seen["bandwidth"], loss.total.ndim) == ("tiled", [0.5, 2.0], 0)
    assert len(seen["weights_x"]) == len(seen["weights_y"]) == 12
    value = Objective({"module": 1.0}, bandwidth=2.0)(x, y, 1.0).total
    assert value.item() == pytest.approx(moment_distance(x, y).item() / 4)


@pytest.mark.usefixtures("own")
def test_unequal_weights_for_a_divergence_without_them_are_an_error() -> None:
    DIVERGENCES.register("plain", moment_distance)
    x, y = pairs()
    objective = Objective({"plain": 1.0})
    assert objective(x, y, 1.0, torch.arange(12) // 2, torch.arange(12) // 2).total > 0  # all rows count 1/2
    with pytest.raises(InputError, match=r"^plain: .*weights_x"):
        objective(x, y, 1.0, torch.arange(12) // 5, torch.arange(12) // 5)
    function = adapt_divergence("plain", moment_distance)
    assert function(x, y, weights_x=torch.ones(12)) == moment_distance(x, y)


@pytest.mark.usefixtures("own")
def test_a_paired_loss_gets_ids_by_name_or_else_matched_rows() -> None:
    PAIRED_LOSSES.register("plain", pair_distance)
    PAIRED_LOSSES.register("scaled", lambda x, y, ids_y, ids_x, logit_scale: logit_scale * (ids_y.sum() - ids_x.sum()))
    x, y = pairs()
    ids_x, ids_y = torch.arange(12), torch.tensor([3, 3, 0, -1])
    value = Objective({"plain": 1.0})(x, y[:4], 1.0, ids_x, ids_y).total
    assert value.item() == pytest.approx(pair_distance(x[[0, 3, 3]], y[[2, 0, 1]]).item())
    assert Objective({"scaled": 1.0})(x, y[:4], 2.0, ids_x, ids_y).total == 2 * (5 - 66)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.sum(), "too many positional"),
        (lambda x, y, *, strength: x.sum() * strength, "strength"),
        (lambda x, weights_y: x.sum(), "weights_y"),
        (Moments, "Moments"),
        (3, "got 3"),
    ],
)
def test_what_cannot_be_called_with_two_samples_is_refused_when_registered(function: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)^odd: .*{said}.*two samples \(x, y\).*bandwidth"):
        DIVERGENCES.register("odd", function)
    assert "odd" not in DIVERGENCES


@pytest.mark.usefixtures("own")
def test_a_paired_loss_takes_both_ids_or_none_and_a_result_is_one_number() -> None:
    with pytest.raises(InputError, match=r"^half: .*ids_x and ids_y"):
        PAIRED_LOSSES.register("half", lambda x, y, ids_x: x.sum())
    DIVERGENCES.register("rows", lambda x, y: (x - y).sum(dim=1))
    with pytest.raises(InputError, match=r"^rows: returned shape \(12,\)"):
        Objective({"rows": 1.0})(*pairs(), 1.0)


def test_an_entry_point_is_adapted_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "plain = more_things:plain\nbroken = more_things:thing\n")
    with (tmp_path / "more_things.py").open("a") as file:
        file.write("def plain(x, y):\n    return (x.mean() - y.mean()) ** 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "more_things", raising=False)
    table = Registry("csaligner.tests", {}, adapt_divergence)
    x, y = pairs()
    value = load("divergence", table, "plain")(x, y, weights_x=None, weights_y=None, impl="auto", bandwidth=0.5)
    assert value == (x.mean() - y.mean()) ** 2
    with pytest.raises(InputError, match="broken"):
        load("divergence", table, "broken")
