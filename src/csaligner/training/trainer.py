"""The one training loop, on Hugging Face Accelerate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csaligner.adapters.aligner import Aligner
from csaligner.checks import CSAlignerError, InputError
from csaligner.config import TrainConfig
from csaligner.data.samplers import PairSampler
from csaligner.losses.objective import Objective
from csaligner.types import Batch, LossTerms, PairedFeatures

from .checkpoint import Checkpoints, TrainerState
from .schedules import value_at, warmup_cosine

Evaluate = Callable[[Aligner], Mapping[str, float]]
Report = Callable[[int, int, Mapping[str, float]], None]

METRICS = "metrics.jsonl"


def silent(step: int, total: int, values: Mapping[str, float]) -> None:
    return None


@dataclass(frozen=True)
class Hooks:
    """What a run may call out to.

    evaluate: validation metrics of the model, by name. report: called after each step with (step, total steps,
    values); the values hold the losses and, after an evaluation, the metrics.
    """

    evaluate: Evaluate | None = None
    report: Report = silent


class Trainer:
    """Trains an Aligner on paired features.

    `folder` is the run folder for metrics.jsonl and checkpoints/; without one nothing is written. With a
    folder that already holds checkpoints, training goes on from the latest and ends at the same bits as a run
    that was never interrupted (one CPU, same thread count).
    """

    def __init__(
        self,
        model: Aligner,
        features: PairedFeatures,
        config: TrainConfig,
        folder: Path | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._folder = folder
        self._hooks = hooks or Hooks()
        self._sampler = PairSampler(features, config.batch_size, config.captions, config.seed)
        self._steps = config.epochs * self._sampler.batches_per_epoch
        model.log_logit_scale.requires_grad_(config.objective.learn_logit_scale)
        self._optimizer = torch.optim.AdamW(_parameter_groups(model, config.wd), lr=config.lr)
        self._checkpoints = Checkpoints(folder) if folder else None
        self._best: dict[str, torch.Tensor] | None = None

    def fit(self) -> TrainerState:
        """Run to the end (or to the early stop). Afterwards the model holds the weights that the monitor
        chose, or the last ones without a monitor; it is in evaluation mode, on the CPU."""
        accelerator = _accelerator()
        torch.manual_seed(self._config.seed)
        state = TrainerState()
        if self._checkpoints:
            state = self._checkpoints.restore(self._model, self._optimizer)
            self._rewrite_metrics(state)
        model, optimizer = accelerator.prepare(self._model, self._optimizer)
        self._train(accelerator, model, optimizer, state)
        if self._best is not None:
            self._model.load_state_dict(self._best)
        elif self._checkpoints and state.best_step is not None:
            best = Aligner.load(self._checkpoints.folder / "best")
            self._model.load_state_dict(best.state_dict())
        self._model.to("cpu").eval()
        return state

    def _train(self, accelerator: Any, model: Any, optimizer: Any, state: TrainerState) -> None:
        per_epoch = self._sampler.batches_per_epoch
        started, first = time.perf_counter(), state.step
        while state.step < self._steps and not self._patience_spent(state):
            epoch, done = divmod(state.step, per_epoch)
            for number, batch in enumerate(self._sampler.epoch(epoch)):
                if number < done:
                    continue
                values = self._step(accelerator, model, optimizer, batch, state)
                end_of_epoch = number == per_epoch - 1
                if end_of_epoch and ((epoch + 1) % self._config.evaluate_every == 0 or state.step == self._steps):
                    values["steps_per_second"] = (state.step - first) / (time.perf_counter() - started)
                    self._evaluate(state, values)
                self._hooks.report(state.step, self._steps, values)

    def _step(
        self, accelerator: Any, model: Any, optimizer: Any, batch: Batch, state: TrainerState
    ) -> dict[str, float]:
        lr = self._set_rate(optimizer, state.step)
        objective, weights, sigma = self._objective_at(state.step / max(1, self._steps - 1))
        model.train()
        device = accelerator.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._config.precision == "bf16"):
            image, text = model(batch.image.to(device).float(), batch.text.to(device).float())
        if not bool(torch.isfinite(image).all() and torch.isfinite(text).all()):
            raise CSAlignerError(
                f"training: the embeddings are not finite at step {state.step + 1}; lower lr (now {self._config.lr:g})"
            )
        ids = batch.image_ids.to(device), batch.text_ids.to(device)
        loss = objective(image.float(), text.float(), self._model.logit_scale, *ids)
        optimizer.zero_grad()
        accelerator.backward(loss.total)
        optimizer.step()
        if self._config.objective.learn_logit_scale:
            with torch.no_grad():
                limit = torch.tensor(self._config.objective.max_logit_scale).log()
                self._model.log_logit_scale.clamp_(max=float(limit))
        state.step += 1
        return {"step": float(state.step), "lr": lr, **_named(loss), **weights, **sigma}

    def _objective_at(self, progress: float) -> tuple[Objective, dict[str, float], dict[str, float]]:
        c = self._config.objective
        if not c.learn_logit_scale:
            scale = value_at(c.logit_scale, progress)
            self._model.log_logit_scale.data.fill_(float(torch.tensor(scale).log()))
        weights = {name: value_at(weight, progress) for name, weight in c.terms.items()}
        bandwidth = c.bandwidth if isinstance(c.bandwidth, str) else value_at(c.bandwidth, progress)
        logged = {f"weight/{name}": weight for name, weight in weights.items()}
        logged["logit_scale"] = float(self._model.logit_scale.detach())
        sigma = {} if isinstance(bandwidth, str) else {"bandwidth": bandwidth}
        return Objective(weights, bandwidth=bandwidth), logged, sigma

    def _set_rate(self, optimizer: Any, step: int) -> float:
        warmup = self._config.warmup
        factor = warmup_cosine(step, max(1, self._steps // 10) if warmup is None else warmup, self._steps)
        for group in optimizer.param_groups:
            group["lr"] = self._config.lr * factor
        return self._config.lr * factor

    def _evaluate(self, state: TrainerState, values: dict[str, float]) -> None:
        if self._hooks.evaluate is not None:
            self._model.eval()
            metrics = self._hooks.evaluate(self._model)
            values.update({f"val/{name}": value for name, value in metrics.items()})
            if self._config.monitor is not None:
                self._compare(state, metrics, self._config.monitor)
        state.history.append(values)
        if self._folder and self._checkpoints:
            self._checkpoints.save(self._model, self._optimizer, state)
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def _compare(self, state: TrainerState, metrics: Mapping[str, float], monitor: str) -> None:
        if monitor not in metrics:
            raise InputError(f"monitor: {monitor!r} is not among the validation metrics ({', '.join(metrics)})")
        score = metrics[monitor]
        if state.best_score is None or score > state.best_score:
            state.best_score, state.best_step, state.evaluations_without_gain = score, state.step, 0
            self._best = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        else:
            state.evaluations_without_gain += 1

    def _patience_spent(self, state: TrainerState) -> bool:
        patience = self._config.patience
        return patience is not None and state.evaluations_without_gain >= patience

    def _rewrite_metrics(self, state: TrainerState) -> None:
        """metrics.jsonl may be ahead of the checkpoint that a run continues from; the checkpoint is right."""
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(values) + "\n" for values in state.history)
        (self._folder / METRICS).write_text(lines, encoding="utf-8")


def _accelerator() -> Any:
    from accelerate import Accelerator  # a second of import time

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise InputError(
            f"training: started on {accelerator.num_processes} processes; this version trains on one, "
            "start it with plain `csaligner train`"
        )
    return accelerator


def _parameter_groups(model: Aligner, wd: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: centres, offsets, biases and the logit scale keep their size."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": wd},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _named(loss: LossTerms) -> dict[str, float]:
    return {"loss/total": float(loss.total.detach())} | {f"loss/{k}": float(v) for k, v in loss.terms.items()}
