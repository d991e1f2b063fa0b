"""Run configs as checked data: YAML files and `key=value` overrides. Every default is written here, once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .checks import InputError, nearest
from .parsing import parse_yaml
from .registry import ADAPTERS

FORMAT_VERSION = 1
FIXED_SIDE_SCALE = 50.0  # 1/temperature beside an identity adapter
RING_TERMS = ("info_nce", "cauchy_schwarz", "mmd")  # what distributed/ring.py computes
TOKEN_TERM = "token_cauchy_schwarz"  # losses/token.py, on the tokens that go through the adapters

# The paper's hyper-parameters, which TrainConfig takes under these names too -> where they belong.
PAPER_NAMES = {
    "weight": "objective.terms.cauchy_schwarz",
    "bandwidth": "objective.bandwidth",
    "logit_scale": "objective.logit_scale",
    "impl": "objective.impl",  # not the paper's, but as often set
}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(Strict):
    """A number that moves from `start` to `end` over the run, along a line or half a cosine."""

    start: NonNegative
    end: NonNegative
    shape: Literal["linear", "cosine"] = "linear"


class PositiveSchedule(Schedule):
    start: Positive
    end: Positive


class AdapterConfig(Strict):
    """One side's adapter. `identity` leaves that side's features as they are (L2-normalised).

    onto: the adapter lands on a fixed side, and a learnt number says how far its rows lie from that side's centre; the
    start sets it (adapters/start.py).
    """

    name: str = "mlp"
    hidden: Annotated[int, Field(ge=1)] = 512
    blocks: Annotated[int, Field(ge=1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    onto: bool = False

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ADAPTERS:
            raise ValueError(f"{name!r} is not known; {nearest(name, ADAPTERS)}")
        return name


class StartConfig(Strict):
    """Where the adapters start, in closed form from the training features (adapters/start.py).

    kind: auto (moments where the dimensions agree, else projection), identity, moments, projection, or chosen: the
    best of a family of closed-form maps by cross-validation of the training pairs (selection/start.py).
    shrinkage: weight of the mean eigenvalue that is added to each covariance before it is inverted (moments).
    projection_shrinkage: the same for projections, divided by the square root of the number of images.
    spread: onto a fixed side of the same dimension, the distance of the landed rows from its centre, in multiples of
    the root mean square of its own: a larger one keeps more of the recall, a smaller one closes more of the gap.
    images: at most so many training images are read for the fit, at even steps.
    """

    kind: Literal["auto", "identity", "moments", "projection", "chosen"] = "auto"
    shrinkage: Positive = 3.0
    projection_shrinkage: Positive = 12.0
    spread: Positive = 3.0
    images: Annotated[int, Field(ge=2)] = 20_000


class BalanceConfig(Strict):
    """How weights that are `auto` follow InfoNCE (losses/balance.py).

    fraction: length of the weighted gradient of such a term at the embeddings, over that of InfoNCE. momentum: share of
    the old moving average that stays at each measurement. max_weight: where the weights end.
    """

    fraction: Positive = 0.25
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    max_weight: Positive = 10.0


class MemoryConfig(Strict):
    """Past embeddings that enter the divergences beside the batch, without a gradient (training/memory.py).

    size: rows of each modality that are kept, 0 for none; max_age: steps after which a row is dropped.
    """

    size: Annotated[int, Field(ge=0)] = 0
    max_age: Annotated[int, Field(ge=1)] = 20


class UnpairedConfig(Strict):
    """Rows without a partner in each batch (of all ranks together), where a run has such data; CS term only."""

    images: Annotated[int, Field(ge=1)] = 512
    texts: Annotated[int, Field(ge=1)] = 512


class ObjectiveConfig(Strict):
    """Weighted named terms: total = sum over terms of weight * value.

    A weight is a number, a schedule, or `auto` (see balance). bandwidth: a number, a schedule, median or temperature
    (ops/bandwidth.py). unpaired_weight: what an unpaired row counts in the divergences, where an image of a pair
    counts 1 and its captions 1 together; above 1, the clouds that meet are more those of the unpaired data. The term
    token_cauchy_schwarz wants data with tokens (embed --tokens), another term beside it, and no `auto`.
    measure_every: steps between two measurements of what follows the embeddings, the median
    bandwidth and the auto weights. exchange: how the rows of several processes meet; gather: every process holds those
    of all; ring: blocks travel, for batches too large to gather, and the terms are info_nce, cauchy_schwarz and mmd.
    impl: the implementation of the loss (ops/dispatch.py); auto: by size and device.
    """

    terms: Mapping[str, NonNegative | Schedule | Literal["auto"]] = Field(
        default_factory=lambda: {"info_nce": 1.0, "cauchy_schwarz": 1.0}
    )
    balance: BalanceConfig = BalanceConfig()
    unpaired_weight: Positive = 1.0
    measure_every: Annotated[int, Field(ge=1)] = 10
    bandwidth: Positive | PositiveSchedule | Literal["median", "temperature"] = 0.5
    logit_scale: Positive | PositiveSchedule = 1 / 0.07
    learn_logit_scale: bool = True
    max_logit_scale: Positive = 100.0
    exchange: Literal["gather", "ring"] = "gather"
    impl: Literal["auto", "reference", "tiled", "mixed", "triton"] = "auto"

    @model_validator(mode="after")
    def _something_to_do(self) -> ObjectiveConfig:
        if not any(w != 0 for w in self.terms.values()):
            raise ValueError("terms: every weight is 0; give at least one term a weight above 0")
        automatic = [name for name, weight in self.terms.items() if weight == "auto"]
        if "info_nce" in automatic or (automatic and self.terms.get("info_nce", 0) == 0):
            raise ValueError("terms: auto weighs a term against info_nce; give info_nce a number, 1.0 say")
        if TOKEN_TERM in automatic:
            raise ValueError(f"terms: {TOKEN_TERM} takes no auto weight; give it a number, 0.03 say")
        if TOKEN_TERM in self.terms and not any(w != 0 for name, w in self.terms.items() if name != TOKEN_TERM):
            raise ValueError(f"terms: {TOKEN_TERM} needs another term beside it; give info_nce a weight, 1.0 say")
        if self.exchange == "ring" and (others := sorted(set(self.terms) - set(RING_TERMS))):
            raise ValueError(f"exchange: ring does not know {others[0]} ({', '.join(RING_TERMS)}); use gather")
        if self.learn_logit_scale and isinstance(self.logit_scale, Schedule):
            raise ValueError("logit_scale: follows a schedule, so it cannot be learnt; set learn_logit_scale=false")
        return self

    @property
    def sees_tokens(self) -> bool:
        """Whether a term wants the tokens of the data."""
        return self.terms.get(TOKEN_TERM, 0) != 0


class LoRAConfig(Strict):
    """Low-rank updates inside an encoder, trained with the adapters (adapters/lora.py).

    sides: whose encoder. rank and alpha: W x + (alpha / rank) B A x. dropout: before A. targets: last names of the
    layers; the queries, keys and values of the attention if not given.
    """

    sides: Literal["text", "image", "both"]
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = None


class TrainConfig(Strict):
    """Everything that decides a training run, apart from the data and the output folder.

    weight, bandwidth and logit_scale, the hyper-parameters of the paper, are accepted beside the fields: they set
    objective.terms.cauchy_schwarz, objective.bandwidth and (initially) objective.logit_scale. epochs, batch_size, lr,
    wd, warmup (steps; none: a tenth of the run), precision and seed mean what they mean in open_clip, but batch_size
    counts the images of all processes together, and epochs=0 writes the untrained baseline. captions: how many captions
    of each image a batch holds. monitor: the validation metric that selects the checkpoint to keep (higher is better;
    score is the mean of mean_recall@10 and mixed_image_recall@10); none: the last one. patience: evaluations without a
    better one before the run stops. val_images: maximum number of validation images, taken at even steps; none: all.
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
    epochs: Annotated[int, Field(ge=0)] = 40
    lr: Positive = 3e-4
    wd: NonNegative = 0.05
    warmup: Annotated[int, Field(ge=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Annotated[int, Field(ge=1)] = 5
    patience: Annotated[int, Field(ge=1)] | None = None
    monitor: str | None = None
    val_images: Annotated[int, Field(ge=1)] | None = 5000

    @model_validator(mode="before")
    @classmethod
    def _scale_of_a_fixed_side(cls, data: Any) -> Any:
        """Rows of a fixed side keep their common mean, so their cosines differ little: where nothing else is said, the
        logit scale is FIXED_SIDE_SCALE and not learnt (docs/results.md)."""
        if not isinstance(data, dict) or not any(
            _is_identity(data.get(f"{side}_adapter")) for side in ("image", "text")
        ):
            return data
        objective = data.get("objective", {})
        said = objective.model_fields_set if isinstance(objective, BaseModel) else objective
        if not isinstance(said, Mapping | set) or {"logit_scale", "learn_logit_scale"} & set(said):
            return data
        given = objective.model_dump(exclude_unset=True) if isinstance(objective, BaseModel) else dict(objective)
        return data | {"objective": given | {"logit_scale": FIXED_SIDE_SCALE, "learn_logit_scale": False}}

    @model_validator(mode="before")
    @classmethod
    def _paper_names(cls, data: Any) -> Any:
        """Runs before _scale_of_a_fixed_side: pydantic calls the last of such validators first."""
        if not isinstance(data, dict) or not (given := {k: data[k] for k in PAPER_NAMES if k in data}):
            return data
        objective = data.get("objective", {})
        if isinstance(objective, BaseModel):
            objective = objective.model_dump(exclude_unset=True)
        if not isinstance(objective, Mapping):
            return data
        objective = dict(objective)
        if "weight" in given:
            terms = objective.get("terms", {"info_nce": 1.0})
            objective["terms"] = dict(terms) | {"cauchy_schwarz": given.pop("weight")}
        return {k: v for k, v in data.items() if k not in PAPER_NAMES} | {"objective": objective | given}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.image_adapter.name == self.text_adapter.name == "identity" and self.lora is None:
            raise ValueError("image_adapter and text_adapter are both identity: nothing would be trained")
        if self.start.kind == "chosen" and "standardise" in (self.image_adapter.name, self.text_adapter.name):
            raise ValueError("start.kind: chosen does not support the adapter standardise; use auto")
        if self.lora is not None and self.objective.sees_tokens:
            raise ValueError(f"lora: trains inside an encoder, {TOKEN_TERM} sees stored tokens; leave one of them out")
        if self.objective.exchange == "ring" and self.memory.size:
            raise ValueError("memory: objective.exchange=ring holds no rows of other processes; set memory.size=0")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience: needs a monitor to wait for; set monitor=score, say")
        return self


def _is_identity(adapter: Any) -> bool:
    name = adapter.get("name") if isinstance(adapter, dict) else getattr(adapter, "name", adapter)
    return bool(name == "identity")


C = TypeVar("C", bound=BaseModel)


def load_config(kind: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """The config of a YAML file (or the defaults), changed by `key=value` words, dots for nested keys.

    Raises InputError: no such file, not YAML, unknown key (with the nearest name), a value out of range.
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
    """`data` as a checked config; errors are one line with the key, the value and the nearest name."""
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
        raise InputError(f"{key}: {text!r} is not a value that YAML knows") from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    *parents, last = key.split(".")
    for name in parents:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {name} is already set to {inner!r} and holds no keys")
        data = inner
    data[last] = value


def _explain(kind: type[BaseModel], error: ValidationError, data: Mapping[str, Any]) -> str:
    details = error.errors()
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    # pydantic puts the tried member of a union into the path; people know only the keys they wrote
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
