"""Configuration: unknown keys, values out of range, overrides, and round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from csaligner.checks import InputError
from csaligner.config import (
    RANDOM_BANDWIDTH,
    RANDOM_WEIGHT,
    ObjectiveConfig,
    PositiveSchedule,
    TrainConfig,
    build_config,
    dump_config,
    load_config,
)
from csaligner.training.schedules import value_at, warmup_cosine


def test_a_saved_config_reads_back_the_same(tmp_path: Path) -> None:
    words = ["objective.bandwidth={start: 1.0, end: 0.5}", "lr=1e-4", "text_adapter=linear"]
    config = load_config(TrainConfig, None, words)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(TrainConfig, path) == config
    assert config.lr == 1e-4
    assert config.text_adapter.name == "linear"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epoch=3", "^epoch: .*'epochs'"),
        ("objective.bandwith=1", "^objective.bandwith: .*'bandwidth'"),
        ("objective.bandwidth=0", r"^objective.bandwidth: .*\b0\b"),
        ("objective.bandwidth=.nan", "^objective.bandwidth: .*nan"),
        ("objective.bandwidth=-1", "^objective.bandwidth: .*-1"),
        ("objective.terms={info_nce: -1}", "^objective.terms.info_nce: .*-1"),
        ("objective.terms={info_nce: many}", "^objective.terms.info_nce: .*'many'"),
        ("objective.terms={info_nce: 0}", "weight"),
        ("text_adapter=mpl", "^text_adapter.*'mlp'"),
        ("patience=3", "patience: needs a monitor"),
        ("epochs", "key=value"),
        ("batch_size=0", "^batch_size: .*0"),
        ("epochs=-1", "epochs: got -1"),
        ("weight=-1", "weight: got -1"),
        ("bandwidth=0", "bandwidth: got 0"),
        ("wieght=1", "did you mean 'weight'?"),
    ],
)
def test_bad_words_are_one_line_that_names_key_and_fix(word: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(TrainConfig, None, [word])
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_hyper_parameters_of_the_paper_are_accepted_by_name() -> None:
    config = load_config(TrainConfig, None, ["weight=2", "bandwidth=median", "logit_scale=20"])
    objective = config.objective
    assert objective.terms == {"info_nce": 1.0, "cauchy_schwarz": 2.0}
    assert (objective.bandwidth, objective.logit_scale) == ("median", 20.0)
    more = load_config(TrainConfig, None, ["objective.terms={info_nce: 0.2, paired_l2: 1.0}", "weight=auto"])
    assert more.objective.terms == {"info_nce": 0.2, "paired_l2": 1.0, "cauchy_schwarz": "auto"}
    one_sided = load_config(TrainConfig, None, ["image_adapter=identity", "weight=2"])
    assert not one_sided.objective.learn_logit_scale  # the rule for fixed sides still holds
    assert load_config(TrainConfig, None, ["image_adapter=identity", "logit_scale=20"]).objective.learn_logit_scale


def test_random_weights_have_their_own_bandwidth_unless_one_is_given() -> None:
    random: dict[str, Any] = {"start": {"kind": "random"}}
    assert TrainConfig().objective.bandwidth == 0.5
    found = build_config(TrainConfig, random).objective
    assert (found.bandwidth, found.terms["cauchy_schwarz"]) == (RANDOM_BANDWIDTH, RANDOM_WEIGHT)
    assert build_config(TrainConfig, random | {"bandwidth": 0.5}).objective.terms["cauchy_schwarz"] == 1.0
    given = build_config(TrainConfig, random | {"weight": 1.0}).objective
    assert (given.bandwidth, given.terms["cauchy_schwarz"]) == (RANDOM_BANDWIDTH, 1.0)
    same: dict[str, Any]
    for same in ({"bandwidth": 0.5}, {"objective": {"bandwidth": 0.5}}, {"objective": ObjectiveConfig(bandwidth=0.5)}):
        assert build_config(TrainConfig, random | same).objective.bandwidth == 0.5
    one_sided = build_config(TrainConfig, random | {"image_adapter": "identity", "weight": 2})
    assert one_sided.objective.bandwidth == RANDOM_BANDWIDTH
    assert not one_sided.objective.learn_logit_scale
    again = load_config(TrainConfig, None, ["start.kind=random", "bandwidth=[0.2, median-cross]"])
    assert again.objective.bandwidth == (0.2, "median-cross")
    with pytest.raises(InputError, match="bandwidth"):
        load_config(TrainConfig, None, ["bandwidth=[]"])


def test_two_identities_have_nothing_to_train() -> None:
    with pytest.raises(InputError, match="train"):
        build_config(TrainConfig, {"image_adapter": "identity", "text_adapter": "identity"})


def test_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("epochs: [1")
    with pytest.raises(InputError, match="YAML"):
        load_config(TrainConfig, broken)


def test_schedules_begin_and_end_where_they_say() -> None:
    config = load_config(TrainConfig, None, ["objective.bandwidth={start: 2.0, end: 0.5, shape: cosine}"])
    bandwidth = config.objective.bandwidth
    assert isinstance(bandwidth, PositiveSchedule)
    assert value_at(bandwidth, 0.0) == 2.0
    assert value_at(bandwidth, 1.0) == pytest.approx(0.5)
    assert value_at(bandwidth, 0.5) == pytest.approx(1.25)
    assert value_at(0.7, 0.3) == 0.7
    assert [warmup_cosine(step, 4, 12) for step in (0, 3, 4, 8, 12)] == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])


def test_the_implementation_is_set_by_its_short_name() -> None:
    assert load_config(TrainConfig, None, ["impl=tiled"]).objective.impl == "tiled"
