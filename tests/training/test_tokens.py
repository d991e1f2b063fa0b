"""Token-level term in training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, encode
from csaligner.checks import InputError
from csaligner.config import MemoryConfig, ObjectiveConfig, TrainConfig, build_config
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.estimator import CSAligner
from csaligner.paired_features import join_features
from csaligner.training.memory import Embeddings
from csaligner.training.samplers import PairSampler
from csaligner.training.terms import ScheduledObjective
from csaligner.types import PairedFeatures, PairedTokens, TokenPairs, TokenRows, TokenSets

TERM = "token_cauchy_schwarz"
ADAPTER = {"hidden": 8}


def ragged(n: int, dim: int, seed: int) -> TokenRows:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (n,), generator=g)
    return TokenRows(torch.randn(int(counts.sum()), dim, generator=g) + 1, counts)


def features(n: int = 30, seed: int = 0) -> PairedFeatures:
    """Features with two captions per image; a feature is the mean of its tokens."""
    owner = torch.arange(n).repeat_interleave(2)
    image, text = ragged(n, 6, seed), ragged(2 * n, 5, seed + 1)
    means = [
        torch.stack([sets[torch.tensor([i])].states.mean((0, 1)) for i in range(len(sets))]) for sets in (image, text)
    ]
    ids = tuple(f"{seed}-{i}" for i in range(n))
    return PairedFeatures(means[0], means[1], owner, ids, tokens=PairedTokens(image, text))


def config(**settings: Any) -> TrainConfig:
    base = {"image_adapter": ADAPTER, "text_adapter": ADAPTER, "epochs": 8, "batch_size": 10, "lr": 1e-2, "gate": False}
    return build_config(TrainConfig, base | settings)


def with_term(weight: float, **objective: Any) -> dict[str, Any]:
    return {"objective": {"terms": {"info_nce": 1.0, "cauchy_schwarz": 1.0, TERM: weight}} | objective}


def test_sets_are_filled_up_and_masked() -> None:
    sets = TokenRows(torch.arange(12.0).reshape(6, 2), torch.tensor([1, 3, 2]))
    found = sets[torch.tensor([2, 0, 2])]
    assert found.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert found.states.tolist() == [[[8, 9], [10, 11]], [[0, 1], [0, 0]], [[8, 9], [10, 11]]]
    assert sets[torch.tensor([], dtype=torch.int64)].states.shape == (0, 1, 2)
    both = sets.concat(sets)
    assert torch.equal(both[torch.tensor([4])].states, sets[torch.tensor([1])].states)


@pytest.mark.parametrize("captions", ["one", "all"])
def test_a_batch_holds_the_tokens_of_its_own_pairs(captions: Any) -> None:
    f = features()
    assert f.tokens is not None
    for batch in PairSampler(f, 7, captions).epoch(1):
        assert batch.tokens is not None
        assert len(batch.tokens.text.mask) == len(batch.text_ids) == len(batch.tokens.image.mask)
        for row, owner in enumerate(batch.text_ids.tolist()):
            image = batch.tokens.image.states[row][batch.tokens.image.mask[row]]
            assert torch.equal(image, f.tokens.image[torch.tensor([owner])].states[0])
            text = batch.tokens.text.states[row][batch.tokens.text.mask[row]]
            torch.testing.assert_close(text.mean(dim=0), batch.text[row])  # type: ignore[index]


def token_term(model: Aligner, f: PairedFeatures, captions: Tensor) -> float:
    """Return the term by definition: mean over pairs of D_CS between their adapted tokens."""
    assert f.tokens is not None
    values = []
    for caption in captions.tolist():
        image = f.tokens.image[f.text_to_image[caption][None]].states[0]
        text = f.tokens.text[torch.tensor([caption])].states[0]
        x, y = encode(model, "image", image), encode(model, "text", text)
        values.append(float(cauchy_schwarz_divergence(x, y, bandwidth=0.5)))
    return sum(values) / len(values)


def test_the_value_is_the_mean_over_pairs_and_the_total_holds_it() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(3, k, 5, generator=g, dtype=torch.float64), dim=2) for k in (4, 6))
    masks = [torch.arange(k) < torch.tensor([[2], [k], [1]]) for k in (4, 6)]
    tokens = TokenPairs(TokenSets(x, masks[0]), TokenSets(y, masks[1]))
    ids = torch.arange(3)
    rows = Embeddings(x[:, 0], y[:, 0], ids, ids, tokens)
    scale = torch.tensor(10.0, dtype=torch.float64)
    terms = {"info_nce": 1.0, TERM: 0.3}
    objective = ScheduledObjective(build_config(ObjectiveConfig, {"terms": terms, "bandwidth": 0.7}), MemoryConfig())
    loss, logged = objective(rows, scale, 0.0, 0)
    pairs = [cauchy_schwarz_divergence(x[b][masks[0][b]], y[b][masks[1][b]], bandwidth=0.7) for b in range(3)]
    wanted = float(torch.stack(pairs).mean())
    assert float(loss.terms[TERM]) == pytest.approx(wanted, abs=1e-12)
    assert float(loss.total) == pytest.approx(float(loss.terms["info_nce"]) + 0.3 * wanted, abs=1e-12)
    assert logged[f"weight/{TERM}"] == 0.3


def test_it_brings_the_tokens_of_pairs_together() -> None:
    f, captions = features(), torch.arange(60)
    without, beside = (CSAligner(config(epochs=40, **with_term(w))).fit_features(f).model for w in (0.0, 3.0))
    assert token_term(beside, f, captions) < 0.8 * token_term(without, f, captions)


def test_without_the_term_tokens_change_nothing() -> None:
    f = features()
    plain = CSAligner(config()).fit_features(replace(f, tokens=None)).model.state_dict()
    for name, value in CSAligner(config()).fit_features(f).model.state_dict().items():
        assert torch.equal(value, plain[name]), name


def test_joined_parts_keep_their_tokens() -> None:
    first, second = features(4), features(3, seed=5)
    whole = join_features(first, second)
    assert whole.tokens is not None
    assert second.tokens is not None
    assert torch.equal(whole.tokens.text[torch.tensor([9])].states, second.tokens.text[torch.tensor([1])].states)
    assert join_features(first, replace(second, tokens=None)).tokens is None


def test_data_without_tokens_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"token_cauchy_schwarz.*--"):
        CSAligner(config(**with_term(0.3))).fit_features(replace(features(), tokens=None))


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ({"info_nce": 1.0, TERM: "auto"}, "auto"),
        ({TERM: 1.0}, "needs another term"),
        ({TERM: 1.0, "info_nce": 0.0}, "needs another term"),
    ],
)
def test_terms_that_cannot_be(terms: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        build_config(ObjectiveConfig, {"terms": terms})
