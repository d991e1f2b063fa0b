"""The training loop, for one or several processes, with the devices and trackers of Hugging Face Accelerate."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from csaligner.adapters.lora import LoRAAligner
from csaligner.checks import CSAlignerError, InputError
from csaligner.config import Schedule, TrainConfig
from csaligner.distributed.gather import gather_ids, gather_rows
from csaligner.distributed.processes import (
    average_gradients,
    is_main,
    make_accelerator,
    on_main,
    rank,
    same_start,
    wait_for_all,
    world_size,
)
from csaligner.files import recover, write_text
from csaligner.ops.dispatch import choose
from csaligner.types import Batch, Inputs, LossTerms, Sampler, TokenPairs, TokenSets

from .checkpoint import (
    Checkpoints,
    Tensors,
    TrainerState,
    load_optimizer,
    load_trained,
    optimizer_tensors,
    read_checkpoint,
    trained_weights,
)
from .memory import Embeddings
from .optimizer import AdamW
from .prefetch import Waiting, read_ahead
from .schedules import value_at, warmup_cosine
from .terms import ScheduledObjective
from .tracking import check_trackers, check_used, flat, json_line
from .watch import batch_gap, lost_pairs, narrow_kernel

Report = Callable[[int, int, Mapping[str, float]], None]

METRICS = "metrics.jsonl"


class Model(Protocol):
    """Protocol of trainable models, an nn.Module such as Aligner.

    Maps the images and texts of a batch to unit rows (N, d) and (M, d). log_logit_scale: a scalar parameter, the log of
    the logit scale of InfoNCE. save: writes the model to a new folder.
    """

    log_logit_scale: nn.Parameter

    def __call__(self, image: Inputs, text: Inputs) -> tuple[Tensor, Tensor]: ...

    def save(self, folder: Path) -> None: ...


Evaluate = Callable[[Any], Mapping[str, float]]


def silent(step: int, total: int, values: Mapping[str, float]) -> None:
    return None


def warn_user(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a run, called on the main process only.

    evaluate: validation metrics of the model, by name. report: called after each step with (step, total steps,
    values); the values hold the losses and, after an evaluation, the metrics. warn: called with a line if the
    divergence may harm or has harmed the pairs (training/watch.py); None: this is not measured.
    """

    evaluate: Evaluate | None = None
    report: Report = silent
    warn: Callable[[str], None] | None = warn_user


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not affect its results.

    workers: number of batches prefetched by a thread, 0 for none. report_to: tensorboard, wandb, trackio. resume: the
    checkpoint folder to resume from; default: the latest of the run folder, if there is one.
    """

    workers: int = 2
    report_to: tuple[str, ...] = ()
    resume: Path | None = None


class Trainer:
    """Trains a model on the batches of a sampler.

    `folder` is the run folder for metrics.jsonl and checkpoints/; without one, nothing is written. If the folder
    contains checkpoints, training resumes from the latest, and the result is bitwise identical to that of an
    uninterrupted run (with the same devices, thread count and number of processes).

    With R processes, each processes its local rows of the same global batch. Embeddings and ids are gathered or sent
    around the ring (objective.exchange), every process computes the global loss, and gradients are averaged (see
    csaligner.distributed.gather): results equal those of a single process, except for dropout, which each process draws
    for its local rows.
    """

    def __init__(
        self,
        model: nn.Module,
        sampler: Sampler,
        config: TrainConfig,
        folder: Path | None = None,
        hooks: Hooks | None = None,
        options: RunOptions | None = None,
    ) -> None:
        self._module, self._model = model, cast(Model, model)
        self._sampler, self._config, self._folder = sampler, config, folder
        self._hooks, self._options = hooks or Hooks(), options or RunOptions()
        check_trackers(self._options.report_to)
        self._objective = ScheduledObjective(config.objective, config.memory)
        self._steps = config.epochs_for(sampler.batches_per_epoch) * sampler.batches_per_epoch
        self._model.log_logit_scale.requires_grad_(config.objective.learn_logit_scale)
        self._checkpoints = Checkpoints(folder) if folder else None
        self._largest_log_scale = float(torch.tensor(config.objective.max_logit_scale).log())
        self._best: dict[str, Tensor] | None = None
        self._waiting = Waiting()

    def fit(self) -> TrainerState:
        """Train to the end (or to the early stop) and return the final state.

        Afterwards the model has the weights selected by the monitor, or the last ones without a monitor; it is in
        evaluation mode, on the CPU.
        """
        self._accelerator = make_accelerator(log_with=list(self._options.report_to) or None, project_dir=self._folder)
        if self._options.report_to and is_main():
            check_used(self._options.report_to, self._accelerator.log_with)
            self._accelerator.init_trackers("csaligner", flat(self._config.model_dump(mode="json")))
        self._module.to(self._accelerator.device)
        same_start(self._module)
        groups = _parameter_groups(self._module, self._config.wd)
        self._optimizer = AdamW(groups, self._config.lr)
        torch.manual_seed(self._config.seed + (rank() << 32))
        state = self._restore()
        self._warn(narrow_kernel(self._config.objective) if self._steps else None)
        self._train(state)
        self._warn(lost_pairs(self._config.objective, state.history))
        for tracker in self._accelerator.trackers if is_main() else ():
            tracker.finish()  # end_training would also destroy the process group
        wait_for_all()  # until the last checkpoint is written
        if self._best is not None:
            load_trained(self._module, self._best, "best")
        elif self._checkpoints and state.best_step is not None:
            best = self._checkpoints.folder / "best"
            load_trained(self._module, read_checkpoint(best)[1].weights, str(best))
        self._module.to("cpu").eval()
        return state

    def _train(self, state: TrainerState) -> None:
        per_epoch = self._sampler.batches_per_epoch
        clock, first = time.perf_counter(), state.step
        if self._steps == 0 and not state.history:  # epochs=0: the untrained model is the result
            self._report(0, self._evaluate(state, {}))
        while state.step < self._steps and not self._patience_spent(state):
            epoch, done = divmod(state.step, per_epoch)
            batches = read_ahead(self._sampler.epoch(epoch), self._options.workers)
            for number, batch in enumerate(self._waiting.over(batches)):
                if number < done:
                    continue
                values = self._step(batch, state)
                end_of_epoch = number == per_epoch - 1
                if end_of_epoch and ((epoch + 1) % self._config.evaluate_every == 0 or state.step == self._steps):
                    elapsed = time.perf_counter() - clock
                    values["steps_per_second"] = (state.step - first) / elapsed
                    values["data_wait"] = self._waiting.seconds / elapsed
                    values |= batch_gap(self._rows) if self._hooks.warn is not None else {}
                    values = self._evaluate(state, values)
                    clock, first, self._waiting.seconds = time.perf_counter(), state.step, 0.0
                self._report(state.step, values)

    def _step(self, batch: Batch, state: TrainerState) -> dict[str, float]:
        lr = self._set_rate(state.step)
        progress = state.step / max(1, self._steps - 1)
        log_scale, c = self._model.log_logit_scale, self._config.objective
        if isinstance(c.logit_scale, Schedule):
            log_scale.data.fill_(float(torch.tensor(value_at(c.logit_scale, progress)).log()))
        self._module.train()
        rows = self._rows = self._embed(batch)
        finite = torch.isfinite(rows.image.sum() + rows.text.sum())  # unit rows: the sums cannot overflow
        if not bool(gather_ids(finite.int()[None]).all() if c.exchange == "ring" else finite):
            raise CSAlignerError(
                f"training: the embeddings are not finite at step {state.step + 1}; lower lr (now {self._config.lr:g})"
            )
        scale = log_scale.exp()
        loss, in_use = self._objective(rows, scale, progress, state.step)
        self._module.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        average_gradients(self._module.parameters())
        self._optimizer.step()
        if c.learn_logit_scale:
            with torch.no_grad():
                log_scale.clamp_(max=self._largest_log_scale)
        state.step += 1
        return {"step": float(state.step), "lr": lr, **_read(loss, scale), **in_use}

    def _embed(self, batch: Batch) -> Embeddings:
        """Return the embeddings of the rows of all ranks, or of the local rows (exchange ring), in the dtype of the
        logit scale or, for the Triton kernels, in bfloat16."""
        device, dtype = self._accelerator.device, self._model.log_logit_scale.dtype
        inputs = [_sent(side, device, dtype) for side in (batch.image, batch.text)]
        tokens: TokenPairs | None = None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._config.precision == "bf16"):
            if batch.tokens is None:
                image, text = self._model(*inputs)
            else:
                image, text, tokens = self._with_tokens(inputs, batch)
        c = self._config
        gathers = c.objective.exchange == "gather"
        if c.precision == "bf16" and gathers and choose(c.objective.impl, image, text) == "triton":
            dtype = torch.bfloat16  # supported by the products of the loss
        image, text = image.to(dtype), text.to(dtype)
        image_ids, text_ids = batch.image_ids.to(device), batch.text_ids.to(device)
        if gathers:
            (image, image_ids), (text, text_ids) = _gathered(image, image_ids), _gathered(text, text_ids)
        return Embeddings(image, text, image_ids, text_ids, tokens)

    def _with_tokens(self, inputs: Sequence[Inputs], batch: Batch) -> tuple[Tensor, Tensor, TokenPairs]:
        """Return the embeddings of the batch, and the tokens of its pairs in the aligned space."""
        assert batch.tokens is not None
        device, dtype = self._accelerator.device, self._model.log_logit_scale.dtype
        given = TokenPairs(
            *(TokenSets(t.states.to(device, dtype), t.mask.to(device)) for t in (batch.tokens.image, batch.tokens.text))
        )
        paired = batch.text_ids[batch.text_ids >= 0]
        owners = (paired[:, None] == batch.image_ids[None]).int().argmax(dim=1).to(device)
        more = (owners,) if isinstance(self._module, LoRAAligner) else ()
        image, text, tokens = cast(Any, self._module).with_tokens(*inputs, given, *more)
        sides = (TokenSets(t.states.to(dtype), t.mask) for t in (tokens.image, tokens.text))
        return image, text, TokenPairs(*sides)

    def _set_rate(self, step: int) -> float:
        warmup = self._config.warmup
        factor = warmup_cosine(step, max(1, self._steps // 10) if warmup is None else warmup, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * factor
        return self._config.lr * factor

    def _warn(self, message: str | None) -> None:
        if message is not None and self._hooks.warn is not None and is_main():
            self._hooks.warn(message)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        if is_main():
            self._hooks.report(step, self._steps, values)
            if self._options.report_to:
                self._accelerator.log(dict(values), step=step)

    def _evaluate(self, state: TrainerState, values: dict[str, float]) -> dict[str, float]:
        """Validate on the main process, share the metrics, and save a checkpoint."""
        if self._hooks.evaluate is not None:
            self._module.eval()
            evaluate = self._hooks.evaluate
            metrics = on_main(lambda: dict(evaluate(self._module)))
            values |= {f"val/{name}": value for name, value in metrics.items()}
            if self._config.monitor is not None:
                self._compare(state, metrics, self._config.monitor)
        values = on_main(lambda: values)  # step times differ between processes
        state.history.append(values)
        self._save(state)
        return values

    def _compare(self, state: TrainerState, metrics: Mapping[str, float], monitor: str) -> None:
        if monitor not in metrics:
            raise InputError(f"monitor: {monitor!r} is not among the validation metrics ({', '.join(metrics)})")
        score = metrics[monitor]
        if state.best_score is None or score > state.best_score:
            state.best_score, state.best_step, state.evaluations_without_gain = score, state.step, 0
            self._best = {k: v.detach().clone() for k, v in trained_weights(self._module).items()}
        else:
            state.evaluations_without_gain += 1

    def _patience_spent(self, state: TrainerState) -> bool:
        patience = self._config.patience
        return patience is not None and state.evaluations_without_gain >= patience

    def _save(self, state: TrainerState) -> None:
        random = gather_ids(_random_state(self._accelerator.device)[None])  # a collective call of all processes
        if self._folder is None or self._checkpoints is None or not is_main():
            return
        state = replace(state, objective=self._objective.state())
        tensors = Tensors(
            trained_weights(self._module), optimizer_tensors(self._optimizer), self._objective.memory.tensors(), random
        )
        self._checkpoints.save(self._model, state, tensors)
        with (self._folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json_line(state.history[-1]))

    def _restore(self) -> TrainerState:
        """Return the state to resume from; restores model, optimiser, objective and RNG state."""
        if self._checkpoints and is_main():
            recover(self._checkpoints.folder)
        path = self._options.resume or (self._checkpoints and self._checkpoints.latest)
        state = TrainerState()
        if path:
            state, tensors = read_checkpoint(path)
            self._load(path, state, tensors)
        if on_main(lambda: state.step) != state.step:
            raise InputError("checkpoint: processes read different ones; use a run folder shared by all processes")
        if self._folder and is_main():
            self._rewrite_metrics(self._folder, state)
        return state

    def _load(self, path: Path, state: TrainerState, tensors: Tensors) -> None:
        if state.step > self._steps:
            raise InputError(
                f"checkpoint: {path} is at step {state.step}, this run ends at {self._steps}; raise epochs"
            )
        device = self._accelerator.device
        if self._checkpoints is None or path.resolve().parent != self._checkpoints.folder.resolve():
            state.best_step, state.best_score = None, None  # those weights are in another folder
        load_trained(self._module, tensors.weights, str(path))
        load_optimizer(self._optimizer, tensors.optimizer)
        memory = {name: t.to(device) for name, t in tensors.memory.items()}
        self._objective.restore(state.objective, memory)
        if len(tensors.random) == world_size():
            _set_random_state(tensors.random[rank()], device)
        else:  # different number of processes: reseed, deterministically
            torch.manual_seed(self._config.seed + state.step + (rank() << 32))

    def _rewrite_metrics(self, folder: Path, state: TrainerState) -> None:
        """Rewrite metrics.jsonl from the checkpoint, since it may contain later steps."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / METRICS, "".join(map(json_line, state.history)))


def _sent(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Send the inputs to the device; features are converted to the dtype, encoder inputs are not."""
    if isinstance(inputs, Tensor):
        return inputs.to(device).to(dtype)
    from accelerate.utils import send_to_device

    sent: Inputs = send_to_device(inputs, device)
    return sent


def _gathered(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the rows of all ranks in the order of a single process: paired rows before unpaired rows."""
    if world_size() == 1:
        return rows, ids
    rows, ids = gather_rows(rows), gather_ids(ids)
    order = torch.argsort((ids < 0).int(), stable=True)
    return rows[order], ids[order]


def _random_state(device: torch.device) -> Tensor:
    """Return the CPU RNG state, followed by the GPU's; (bytes,) uint8, on a device that collectives support."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states).to(device)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].cpu().clone())  # torch misreads views
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].cpu().clone(), device)


def _parameter_groups(model: nn.Module, wd: float) -> list[dict[str, Any]]:
    """Apply weight decay to matrices only, not to centres, offsets, biases and the logit scale."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": wd},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _read(loss: LossTerms, scale: Tensor) -> dict[str, float]:
    """Return the values of a step by their names in logs, read from the device at once."""
    named = {"loss/total": loss.total, **{f"loss/{k}": v for k, v in loss.terms.items()}, "logit_scale": scale}
    values = torch.stack([value.detach().double() for value in named.values()])
    return dict(zip(named, values.tolist(), strict=True))
