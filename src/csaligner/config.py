"""Validated configs of training runs: YAML files, `key=value` overrides, and all defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from .adapter_config import FIXED as FIXED  # noqa: PLC0414  (exported)
from .adapter_config import AdapterConfig as AdapterConfig  # noqa: PLC0414  (exported)
from .adapter_config import Strict as Strict  # noqa: PLC0414  (exported)
from .checks import InputError, nearest
from .names import checked_names
from .parsing import parse_yaml

FORMAT_VERSION = 1
FIXED_SIDE_SCALE = 50.0  # 1/temperature with an identity adapter
RANDOM_BANDWIDTH, RANDOM_WEIGHT = "median", 3.0  # of D_CS, with random weights: benchmarks/random_start.py
EPOCHS, LEAST_EPOCHS, GATED_STEPS = 40, 8, 80  # see TrainConfig.epochs_for
RING_TERMS = ("info_nce", "cauchy_schwarz", "mmd")  # terms that distributed/ring.py computes
TOKEN_TERM = "token_cauchy_schwarz"  # losses/token.py, on the adapted tokens

# Names of the paper's hyper-parameters that TrainConfig also accepts -> their keys.
PAPER_NAMES = {
    "weight": "objective.terms.cauchy_schwarz",
    "bandwidth": "objective.bandwidth",
    "logit_scale": "objective.logit_scale",
    "impl": "objective.impl",  # not the paper's, but as often set
}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Schedule(Strict):
    """A number that changes from `start` to `end` over the run, linearly or along half a cosine."""

    start: NonNegative
    end: NonNegative
    shape: Literal["linear", "cosine"] = "linear"


class PositiveSchedule(Schedule):
    start: Positive
    end: Positive


Bandwidth = Positive | PositiveSchedule | Literal["median", "median-cross", "temperature"]


class StartConfig(Strict):
    """Closed-form initialisation of the adapters from the training features (adapters/start.py).

    kind: chosen (default): the best of a family of closed-form maps by cross-validation on the training pairs
    (selection/start.py); auto (moments if the dimensions agree, else projection), identity, moments, projection;
    class_names: the bundled aligner with its adapters, for features of the bundled encoders and few captioned photos
    (adapters/class_names.py); or random: random weights, as in the paper. With an adapter standardise or centre, chosen
    is auto.
    prefer: the queries that the choice and the gate score: both kinds, or captions alone.
    shrinkage: weight of the mean eigenvalue added to each covariance before inversion (moments).
    projection_shrinkage: the same for projections, divided by the square root of the number of images.
    spread: for a fixed modality of the same dimension, the distance of the mapped rows from its centre, in multiples
    of the root mean square distance of its own rows: larger values keep more recall, smaller ones reduce the gap more.
    images: maximum number of training images for the fit, evenly spaced.
    checkpoint: folder of a published ECLIPSE prior, which replaces the start and the weights of the text adapter
    (adapters/prior.py); needs text_adapter=prior and a fixed image_adapter.
    """

    kind: Literal["chosen", "auto", "identity", "moments", "projection", "class_names", "random"] = "chosen"
    prefer: Literal["both", "captions"] = "both"
    shrinkage: Positive = 3.0
    projection_shrinkage: Positive = 12.0
    spread: Positive = 3.0
    images: Annotated[int, Field(ge=2)] = 20_000
    checkpoint: str | None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in write(self).items() if v is not None or k != "checkpoint"}


class BalanceConfig(Strict):
    """Settings of `auto` weights, which balance a term against InfoNCE (losses/balance.py).

    fraction: norm of the term's weighted gradient at the embeddings, relative to that of InfoNCE. momentum: momentum
    of the moving average over measurements. max_weight: upper limit of the weights.
    """

    fraction: Positive = 0.25
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    max_weight: Positive = 10.0


class MemoryConfig(Strict):
    """Memory of past embeddings, which enter the divergences without a gradient (training/memory.py).

    size: rows kept per modality, 0: none; max_age: number of steps after which a row is dropped.
    """

    size: Annotated[int, Field(ge=0)] = 0
    max_age: Annotated[int, Field(ge=1)] = 20


class UnpairedConfig(Strict):
    """Number of unpaired rows per batch (all ranks together), for runs with such data; used by the CS term only."""

    images: Annotated[int, Field(ge=1)] = 512
    texts: Annotated[int, Field(ge=1)] = 512


class ObjectiveConfig(Strict):
    """Weighted named terms: total = sum over terms of weight * value.

    A weight is a number, a schedule, or `auto` (see balance). bandwidth: a number, a schedule, median, median-cross or
    temperature (ops/bandwidth.py), or several of these: the mean of the kernels. unpaired_weight: weight of an unpaired
    row in the divergences, relative to 1 for a paired image and 1 for all its captions together. The term
    token_cauchy_schwarz requires data with tokens (embed --tokens) and another term, and takes no `auto`.
    measure_every: steps between measurements of the median bandwidth and the auto weights. exchange: how several
    processes exchange rows; gather: every process holds all rows; ring: blocks are passed around, for batches too large
    to gather, with the terms info_nce, cauchy_schwarz and mmd.
    impl: the implementation of the loss (ops/dispatch.py); auto: by size and device.
    """

    terms: Mapping[str, NonNegative | Schedule | Literal["auto"]] = Field(
        default_factory=lambda: {"info_nce": 1.0, "cauchy_schwarz": 1.0}
    )
    balance: BalanceConfig = BalanceConfig()
    unpaired_weight: Positive = 1.0
    measure_every: Annotated[int, Field(ge=1)] = 10
    bandwidth: Bandwidth | Annotated[tuple[Bandwidth, ...], Field(min_length=1)] = 0.5
    logit_scale: Positive | PositiveSchedule = 1 / 0.07
    learn_logit_scale: bool = True
    max_logit_scale: Positive = 100.0
    exchange: Literal["gather", "ring"] = "gather"
    impl: Literal["auto", "reference", "dense", "tiled", "mixed", "triton"] = "auto"

    @model_validator(mode="after")
    def _something_to_do(self) -> ObjectiveConfig:
        if not any(w != 0 for w in self.terms.values()):
            raise ValueError("terms: every weight is 0; give at least one term a weight above 0")
        automatic = [name for name, weight in self.terms.items() if weight == "auto"]
        if "info_nce" in automatic or (automatic and self.terms.get("info_nce", 0) == 0):
            raise ValueError("terms: auto weighs a term against info_nce; give info_nce a number, for example 1.0")
        if TOKEN_TERM in automatic:
            raise ValueError(f"terms: {TOKEN_TERM} takes no auto weight; give it a number, for example 0.03")
        if TOKEN_TERM in self.terms and not any(w != 0 for name, w in self.terms.items() if name != TOKEN_TERM):
            raise ValueError(f"terms: {TOKEN_TERM} needs another term; give info_nce a weight, for example 1.0")
        if self.exchange == "ring" and (others := sorted(set(self.terms) - set(RING_TERMS))):
            raise ValueError(f"exchange: ring does not support {others[0]} (only {', '.join(RING_TERMS)}); use gather")
        if self.learn_logit_scale and isinstance(self.logit_scale, Schedule):
            raise ValueError("logit_scale: follows a schedule, so it cannot be learnt; set learn_logit_scale=false")
        return self

    @property
    def sees_tokens(self) -> bool:
        """Whether a term uses the tokens of the data."""
        return self.terms.get(TOKEN_TERM, 0) != 0


class LoRAConfig(Strict):
    """LoRA updates of an encoder, trained together with the adapters (adapters/lora.py).

    sides: modalities whose encoder is trained. rank and alpha: W x + (alpha / rank) B A x. dropout: before A. targets:
    last components of layer names; default: queries, keys and values of the attention.
    """

    sides: Literal["text", "image", "both"]
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = None


class TrainConfig(Strict):
    """All settings of a training run except the data and the output folder.

    weight, bandwidth and logit_scale, the hyper-parameters of the paper, are accepted as well: they set
    objective.terms.cauchy_schwarz, objective.bandwidth and (initially) objective.logit_scale. epochs, batch_size, lr,
    wd, warmup (steps; none: a tenth of the run), precision and seed are those of open_clip, except that batch_size
    counts the images of all processes together and epochs=0 gives the untrained baseline; epochs=none: 40, and with the
    gate fewer for many pairs (epochs_for). gate: keep what training learnt only if held-out training pairs show a gain
    of more than two standard errors (selection/gate.py); see `gates` for where it does not apply. captions: captions
    per image in a batch, one or all. monitor: validation metric that selects the checkpoint (higher is better; score is
    the mean of mean_recall@10 and mixed_image_recall@10); none: the last checkpoint. patience: number of evaluations
    without improvement before the run stops. val_images: maximum number of validation images, evenly spaced; none: all.
    """

    image_adapter: AdapterConfig = AdapterConfig()
    text_adapter: AdapterConfig = AdapterConfig()
    dim: Annotated[int, Field(ge=1)] | None = None
    lora: LoRAConfig | None = None
    start: StartConfig = StartConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    memory: MemoryConfig = MemoryConfig()
    unpaired: UnpairedConfig = UnpairedConfig()
    batch_size: Annotated[int, Field(ge=1)] = 512
    captions: Literal["one", "all"] = "one"
    epochs: Annotated[int, Field(ge=0)] | None = None
    gate: bool = True
    lr: Positive = 3e-4
    wd: NonNegative = 0.05
    warmup: Annotated[int, Field(ge=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Annotated[int, Field(ge=1)] = 5
    patience: Annotated[int, Field(ge=1)] | None = None
    monitor: str | None = None
    val_images: Annotated[int, Field(ge=1)] | None = 5000
    names: Annotated[tuple[str, str], AfterValidator(checked_names)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_objective(cls, data: Any) -> Any:
        """Set the logit scale with an identity adapter: FIXED_SIDE_SCALE, not learnt (docs/results.md), since rows of a
        fixed modality keep their common mean, so their cosines differ little; with random weights the bandwidth, and
        if neither is given the weight of D_CS: RANDOM_BANDWIDTH, RANDOM_WEIGHT (docs/training.md)."""
        if not isinstance(data, dict):
            return data
        if any(_named(data.get(f"{side}_adapter"), "name") == "identity" for side in ("image", "text")):
            data = _with_objective(data, {"logit_scale": FIXED_SIDE_SCALE, "learn_logit_scale": False})
        if _named(data.get("start"), "kind") == "random":
            terms = {"info_nce": 1.0, "cauchy_schwarz": RANDOM_WEIGHT}
            for defaults in ({"bandwidth": RANDOM_BANDWIDTH, "terms": terms}, {"bandwidth": RANDOM_BANDWIDTH}):
                data = _with_objective(data, defaults)
        return data

    @model_validator(mode="before")
    @classmethod
    def _paper_names(cls, data: Any) -> Any:
        """Move the paper's names to their keys. Runs before the others: pydantic calls the last first."""
        if not isinstance(data, dict) or not (given := {k: data[k] for k in PAPER_NAMES if k in data}):
            return data
        objective = _given(data.get("objective", {}))
        if objective is None:
            return data
        if "weight" in given:
            terms = objective.get("terms", {"info_nce": 1.0})
            objective["terms"] = dict(terms) | {"cauchy_schwarz": given.pop("weight")}
        return {k: v for k, v in data.items() if k not in PAPER_NAMES} | {"objective": objective | given}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.image_adapter.name == self.text_adapter.name == "identity" and self.lora is None:
            raise ValueError(
                "image_adapter and text_adapter are both identity, so nothing is trained; set one of them to mlp"
            )
        if self.start.checkpoint is not None and (
            self.text_adapter.name != "prior" or self.image_adapter.name not in FIXED
        ):
            raise ValueError(
                "start.checkpoint: holds a prior from text to fixed images; set text_adapter=prior and "
                f"image_adapter={' or '.join(FIXED)}"
            )
        if self.objective.exchange == "ring" and self.memory.size:
            raise ValueError("memory: not supported with objective.exchange=ring; set memory.size=0")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience: needs a monitor; set for example monitor=score")
        return self

    @property
    def chooses_start(self) -> bool:
        """Whether the start is chosen: kind chosen, no checkpoint, and no adapter standardise or centre."""
        published = self.start.checkpoint is not None
        return self.start.kind == "chosen" and not published and not self._uses("standardise", "centre")

    @property
    def gates(self) -> bool:
        """Whether training is gated: `gate`, except without training, with LoRA (the encoders change as well), with
        random weights (the start is no alignment), and with adapters standardise, centre and prior (text-to-image)."""
        trains = self.epochs != 0 and self.lora is None and self.start.kind != "random"
        return self.gate and trains and not self._uses("standardise", "centre", "prior")

    @property
    def reads_states(self) -> bool:
        """Whether the text adapter reads hidden states of the text encoder where the data have them (a prior)."""
        return self.text_adapter.name == "prior"

    def epochs_for(self, batches: int) -> int:
        """Return `epochs`; none: 40, and with the gate as many as make GATED_STEPS steps, at least 8 and at most 40.

        batches: number of batches per epoch."""
        if self.epochs is not None or not self.gates:
            return EPOCHS if self.epochs is None else self.epochs
        return min(EPOCHS, max(LEAST_EPOCHS, GATED_STEPS // max(1, batches)))

    def _uses(self, *names: str) -> bool:
        return bool({self.image_adapter.name, self.text_adapter.name} & set(names))


def _named(part: Any, key: str) -> Any:
    """Return a key of a part of a config; a part may be its name alone."""
    return part.get(key) if isinstance(part, dict) else getattr(part, key, part)


def _with_objective(data: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Set keys of the objective, unless one of them is given."""
    given = _given(data.get("objective", {}))
    return data if given is None or set(defaults) & set(given) else data | {"objective": {**given, **defaults}}


def _given(objective: Any) -> dict[str, Any] | None:
    """Return the keys that are given, None for what is no objective."""
    if isinstance(objective, BaseModel):
        return objective.model_dump(exclude_unset=True)
    return dict(objective) if isinstance(objective, Mapping) else None


C = TypeVar("C", bound=BaseModel)


def load_config(kind: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Load a config from a YAML file (or the defaults) and apply `key=value` overrides, with dots for nested keys.

    Raises InputError for a missing file, invalid YAML, an unknown key (with the nearest name) or a value out of range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise InputError(f"config: no such file: {path}")
        try:
            loaded = parse_yaml(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"config: {path} is not YAML ({' '.join(str(error).split())})") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"config: {path} holds a {type(loaded).__name__}, wanted keys and values")
        data = loaded or {}
    for word in overrides:
        override(data, word)
    return build_config(kind, data)


def build_config(kind: type[C], data: Mapping[str, Any]) -> C:
    """Validate `data` as a config. Raises InputError with the key, the value and the nearest name."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(kind, error, data)) from None


def dump_config(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def override(data: dict[str, Any], word: str) -> None:
    """Set the `key=value` of one word in `data`, dots for nested keys. Raises InputError."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(f"override: got {word!r}, wanted key=value, for example epochs=20")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise InputError(f"{key}: {text!r} is not a YAML value; quote it") from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    *parents, last = key.split(".")
    for name in parents:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {name} is already set to {inner!r}, which has no keys; remove one of them")
        data = inner
    data[last] = value


def _explain(kind: type[BaseModel], error: ValidationError, data: Mapping[str, Any]) -> str:
    details = error.errors()
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    # pydantic adds the union member that it tried to the path; users know only their keys
    path = [str(p) for p in first["loc"] if not re.search(r"[A-Z\[(]|^(float|constrained)", str(p))]
    path = path or [str(p) for p in first["loc"][-1:] if first["type"] == "extra_forbidden"]
    where = ".".join(path) or "config"
    where = next((name for name, inner in PAPER_NAMES.items() if inner == where and name in data), where)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(path[-1], _fields(kind, path[:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if path else message
    return f"{where}: got {first['input']!r}; {message[0].lower()}{message[1:]}"


def _fields(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        field = kind.model_fields.get(name)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return [*kind.model_fields, *(PAPER_NAMES if kind is TrainConfig else ())]
