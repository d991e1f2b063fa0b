"""The objective of a training step: scheduled and balanced weights, bandwidth, and memory bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.config import TOKEN_TERM, MemoryConfig, ObjectiveConfig, Schedule
from csaligner.distributed.gather import gather_ids, row_counts
from csaligner.distributed.loss import ExchangedObjective, median_sample
from csaligner.distributed.processes import on_main, world_size
from csaligner.losses.balance import GradientBalance, gradient_norm
from csaligner.losses.objective import INFO_NCE, Objective
from csaligner.losses.token import token_cauchy_schwarz
from csaligner.ops.bandwidth import MEDIANS, resolve_bandwidth
from csaligner.registry import DIVERGENCES
from csaligner.types import LossTerms, TokenPairs

from .memory import Embeddings, MemoryBank
from .schedules import value_at

Sigma = float | list[float]  # several: a mixture of kernels


class ScheduledObjective:
    """config.objective with the quantities that change during a run.

    Called once per step, with the embeddings of all ranks (exchange gather) or the local ones (ring). The median
    bandwidth and the gradient norms are measured every `measure_every` steps; they carry no gradient, are equal on all
    ranks and are part of the checkpoint.
    """

    def __init__(self, config: ObjectiveConfig, memory: MemoryConfig) -> None:
        self._config = config
        self._automatic = [name for name, weight in config.terms.items() if weight == "auto"]
        balance = config.balance
        self._balance = GradientBalance(INFO_NCE, balance.fraction, balance.momentum, balance.max_weight)
        self._medians: dict[str, float] = {}
        self.memory = MemoryBank(memory.size, memory.max_age)

    def __call__(
        self, rows: Embeddings, scale: Tensor, progress: float, step: int
    ) -> tuple[LossTerms, dict[str, float]]:
        """Return the loss at `step` (from 0; progress: 0 to 1), and the current settings by the names used in logs.

        Embeddings and scale must be finite."""
        wider = self.memory.with_memory(rows, step)
        due = step % self._config.measure_every == 0
        sigma = self._bandwidth(rows, scale, progress, due)
        if self._automatic and (due or not self._balance.averages):
            self._measure(rows, wider, scale, sigma)
        weights = {name: self._weight(name, progress) for name in self._config.terms}
        loss = self._loss({k: w for k, w in weights.items() if k != TOKEN_TERM}, sigma, rows, wider, scale)
        if weights.get(TOKEN_TERM, 0) > 0:
            loss = _with_tokens(loss, rows.tokens, weights[TOKEN_TERM], sigma)
        self.memory.add(rows, step)
        logged = {f"weight/{name}": weight for name, weight in weights.items()}
        return loss, logged | _by_number(sigma)

    def state(self) -> dict[str, Any]:
        """Return the measured values as JSON; `memory.tensors()` is the rest of the state."""
        return {"median": None, "norms": dict(self._balance.averages)} | self._medians

    def restore(self, state: Mapping[str, Any], memory: dict[str, Tensor]) -> None:
        self._medians = {rule: state[rule] for rule in MEDIANS if state.get(rule) is not None}
        self._balance.averages = dict(state["norms"])
        self.memory.restore(memory)

    def _bandwidth(self, rows: Embeddings, scale: Tensor, progress: float, due: bool) -> Sigma:
        """Return sigma, or the sigmas of a mixture."""
        spec = self._config.bandwidth
        if isinstance(spec, tuple):
            return [self._one_bandwidth(each, rows, scale, progress, due) for each in spec]
        return self._one_bandwidth(spec, rows, scale, progress, due)

    def _one_bandwidth(
        self, spec: float | str | Schedule, rows: Embeddings, scale: Tensor, progress: float, due: bool
    ) -> float:
        if not isinstance(spec, str) or spec not in MEDIANS:
            number = spec if isinstance(spec, str) else value_at(spec, progress)
            return resolve_bandwidth(number, rows.image, rows.text, scale)
        if due or spec not in self._medians:
            image, text = rows.image, rows.text
            if self._config.exchange == "ring":
                image, text = median_sample(image, text, (rows.image_ids, rows.text_ids))
            self._medians[spec] = on_main(lambda: resolve_bandwidth(spec, image, text))
        return self._medians[spec]

    def _measure(self, rows: Embeddings, wider: Embeddings, scale: Tensor, sigma: Sigma) -> None:
        """Measure the gradient norm of each term with respect to the embeddings of the global batch."""
        norms = {}
        n, m = len(rows.image), len(rows.text)
        for name in (INFO_NCE, *self._automatic):
            image, text = (side.detach().requires_grad_() for side in (rows.image, rows.text))
            leaves = Embeddings(image, text, rows.image_ids, rows.text_ids)
            more = Embeddings(
                torch.cat([image, wider.image[n:].detach()]),
                torch.cat([text, wider.text[m:].detach()]),
                wider.image_ids,
                wider.text_ids,
            )
            value = self._loss({name: 1.0}, sigma, leaves, more, scale.detach()).total
            norm = gradient_norm(value, (image, text))
            norms[name] = _over_ranks(norm) if self._config.exchange == "ring" else norm
        read = torch.stack(list(norms.values())).tolist()  # from the device at once
        self._balance.update(on_main(lambda: dict(zip(norms, read, strict=True))))

    def _weight(self, name: str, progress: float) -> float:
        weight = self._config.terms[name]
        return self._balance.weight(name) if isinstance(weight, str) else value_at(weight, progress)

    def _loss(
        self, weights: Mapping[str, float], sigma: Sigma, rows: Embeddings, wider: Embeddings, scale: Tensor
    ) -> LossTerms:
        """Compute divergences on `wider` and paired losses on `rows`, in one sweep if these are equal."""
        wide = {name: weight for name, weight in weights.items() if name in DIVERGENCES}
        narrow = {name: weight for name, weight in weights.items() if name not in DIVERGENCES}
        if wider is rows or not wide or not narrow:
            return self._on(wider if wide and not narrow else rows, weights, sigma, scale)
        first, second = self._on(rows, narrow, sigma, scale), self._on(wider, wide, sigma, scale)
        return LossTerms(
            first.total + second.total, {**first.terms, **second.terms}, weights, {**first.parts, **second.parts}
        )

    def _on(self, rows: Embeddings, weights: Mapping[str, float], sigma: Sigma, scale: Tensor) -> LossTerms:
        c = self._config
        objective = Objective(weights, sigma, c.impl, unpaired_weight=c.unpaired_weight)
        compute = ExchangedObjective(objective, "ring") if c.exchange == "ring" else objective.of_checked
        return compute(rows.image, rows.text, scale, rows.image_ids, rows.text_ids)


def _by_number(sigma: Sigma) -> dict[str, float]:
    if not isinstance(sigma, list):
        return {"bandwidth": sigma}
    return {f"bandwidth/{number}": each for number, each in enumerate(sigma)}


def _over_ranks(norm: Tensor) -> Tensor:
    """Return the gradient norm over all ranks from the local one, whose gradient is R times that of the loss."""
    return gather_ids(norm.square()[None]).sum().sqrt() / world_size()


def _with_tokens(loss: LossTerms, tokens: TokenPairs | None, weight: float, sigma: Sigma) -> LossTerms:
    """Return the loss plus the token-level term, a mean over the pairs of all ranks.

    Each rank computes it for its local pairs. Gradients are averaged over R ranks, so the mean over n_r of N pairs has
    weight R n_r / N; the value is that of all ranks.
    """
    if tokens is None:
        raise InputError(f"terms: {TOKEN_TERM} needs tokens, but these pairs have none; embed with --tokens")
    image, text = tokens.image, tokens.text
    if own := len(image.mask):
        mean = token_cauchy_schwarz(image.states, text.states, image.mask, text.mask, bandwidth=sigma)
    else:
        mean = image.states.sum() + text.states.sum()  # 0, with a gradient as on the other ranks
    share = mean * (world_size() * own / sum(row_counts(image.mask)))
    value = gather_ids(share.detach()[None]).mean()
    part = weight * (share - share.detach() + value)
    return LossTerms(
        loss.total + part,
        {**loss.terms, TOKEN_TERM: value},
        {**loss.weights, TOKEN_TERM: weight},
        {**loss.parts, TOKEN_TERM: part},
    )
