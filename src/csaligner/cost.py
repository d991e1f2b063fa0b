"""Memory and time of a retrieval recipe on one accelerator, computed from the sizes of its models.

FLOPs are those of matrix products (2 m n k), bytes those of weights, optimiser states and files. Decoding of images,
reading of files and padding are not included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from .checks import InputError
from .config import AdapterConfig, Strict, TrainConfig

Count = Annotated[int, Field(ge=1)]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAMW = 16  # bytes per trained parameter in float32: weight, gradient and two moments
LOSS_PRODUCTS = 14  # times B^2 d per step: 3 + 3 of the self terms, 8 of the cross terms (docs/numerics.md)


class ModelSizes(Strict):
    """Sizes of a transformer, as in its config.json. vocab: of a language model; image, patch: sides in pixels of a
    vision model; kv_heads: default heads; gated: three products in the MLP (SwiGLU) and RMS norms without biases, as
    Llama; else two and biases everywhere, as CLIP. projection: dimensions of a final projection without bias."""

    hidden: Count
    layers: Count
    intermediate: Count
    heads: Count
    kv_heads: Count | None = None
    vocab: Count | None = None
    image: Count | None = None
    patch: Count | None = None
    projection: Count | None = None
    gated: bool = False
    dtype: str = "float32"

    @property
    def image_tokens(self) -> int:
        """Patches and the class token."""
        assert self.image is not None
        assert self.patch is not None
        return (self.image // self.patch) ** 2 + 1

    @property
    def _products(self) -> int:
        """Weights of the matrix products of one layer."""
        keys = self.hidden * (self.kv_heads or self.heads) // self.heads
        return 2 * self.hidden * (self.hidden + keys) + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Parameters without a language model head."""
        d = self.hidden
        biases = 0 if self.gated else 4 * d + self.intermediate + d + 4 * d  # attention, MLP, two norms
        norms = 2 * d if self.gated else 0
        total = self.layers * (self._products + biases + norms) + d * (self.projection or 0)
        if self.image is not None and self.patch is not None:
            return total + 3 * self.patch**2 * d + d + self.image_tokens * d + 4 * d  # patches, class, positions, norms
        return total + (self.vocab or 0) * d + d

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of one forward pass of one item of `tokens` tokens (causal masks are not exploited)."""
        attention = 4 * tokens**2 * self.hidden
        total = self.layers * (2 * tokens * self._products + attention) + 2 * self.hidden * (self.projection or 0)
        if self.image is not None and self.patch is not None:
            total += 2 * (tokens - 1) * 3 * self.patch**2 * self.hidden
        return total

    @property
    def weight_bytes(self) -> int:
        return self.parameters * BYTES[self.dtype]

    @classmethod
    def of_config(cls, config: Mapping[str, Any], dtype: str = "float32") -> ModelSizes:
        """Return the sizes of a parsed config.json of a Llama-like language model or of a CLIP with a vision tower.

        Raises InputError for any other model."""
        vision = config.get("vision_config", config)
        names = {"hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
        names |= {"intermediate": "intermediate_size"}
        try:
            if "patch_size" in vision:
                found = {ours: vision[theirs] for ours, theirs in names.items()}
                projection = config.get("projection_dim", vision.get("projection_dim"))
                return cls(
                    **found, image=vision["image_size"], patch=vision["patch_size"], projection=projection, dtype=dtype
                )
            found = {ours: config[theirs] for ours, theirs in names.items()}
            kv_heads = config["num_key_value_heads"]
            return cls(**found, kv_heads=kv_heads, vocab=config["vocab_size"], gated=True, dtype=dtype)
        except KeyError as error:
            raise InputError(f"cost: the model's config.json lacks {error}; wanted a Llama or a CLIP") from None


class Machine(Strict):
    """An accelerator. memory: bytes; flops: peak FLOP/s by dtype; utilisation: fraction of the peak that is reached."""

    name: str = "H100 SXM, 80 GB"
    memory: Count = 80 * 10**9
    flops: Mapping[str, float] = Field(
        default_factory=lambda: {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}
    )
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.4

    def seconds(self, flops: float, dtype: str) -> float:
        return flops / (self.flops[dtype] * self.utilisation)


class CostConfig(Strict):
    """What a recipe costs: sizes of its encoders, pairs of its training set, mean tokens of a caption, items per
    forward pass of the encoders."""

    image: ModelSizes
    text: ModelSizes
    pairs: Count
    caption_tokens: Count
    encoder_batch: Count = 64
    machine: Machine = Machine()


class Cost(Strict):
    """Seconds and bytes of one step of a recipe."""

    step: str
    flops: float
    seconds: float
    memory: float
    disk: float


def costs(c: CostConfig, train: TrainConfig) -> tuple[Cost, ...]:
    """Return the cost of embedding images, embedding captions, and training the adapters."""
    dims = c.image.projection or c.image.hidden, c.text.projection or c.text.hidden
    found = []
    for name, model, tokens, dim in (
        ("embed images", c.image, c.image.image_tokens, dims[0]),
        ("embed captions", c.text, c.caption_tokens, dims[1]),
    ):
        flops = float(c.pairs * model.flops(tokens))
        memory = float(model.weight_bytes + c.encoder_batch * _activations(model, tokens))
        found.append(Cost(
            step=name, flops=flops, seconds=c.machine.seconds(flops, model.dtype), memory=memory, disk=c.pairs * dim * 4
        ))  # fmt: skip
    dim, batch = train.dim or min(dims), min(train.batch_size, c.pairs)
    sides = ((dims[0], train.image_adapter), (dims[1], train.text_adapter))
    parameters = sum(_adapter(size, dim, adapter) for size, adapter in sides)
    epochs = 40 if train.epochs is None else train.epochs
    steps = epochs * -(-c.pairs // batch)
    flops = float(epochs * c.pairs * 6 * parameters + steps * LOSS_PRODUCTS * batch**2 * dim)
    memory = float(parameters * ADAMW + batch * (sum(dims) + 8 * dim) * 4)
    dtype = "bfloat16" if train.precision == "bf16" else "float32"
    found.append(Cost(step="train", flops=flops, seconds=c.machine.seconds(flops, dtype), memory=memory, disk=0.0))
    return tuple(found)


def _adapter(dim_in: int, dim: int, adapter: AdapterConfig) -> int:
    """Return the parameters of an adapter: a map, and residual blocks of an MLP."""
    blocks = adapter.blocks * (2 * dim * adapter.hidden + dim + adapter.hidden) if adapter.name == "mlp" else 0
    return (dim_in * dim + dim_in + dim if adapter.name in ("mlp", "linear") else 0) + blocks


def _activations(model: ModelSizes, tokens: int) -> int:
    """Return the bytes of one item inside one layer: input, queries, keys, values, scores and MLP."""
    wide = 6 * model.hidden + (3 if model.gated else 2) * model.intermediate
    return BYTES[model.dtype] * (tokens * wide + model.heads * tokens**2)


def cost_table(c: CostConfig, train: TrainConfig) -> str:
    """Return the costs as a Markdown table."""
    lines = [
        f"{c.machine.name}, {100 * c.machine.utilisation:.0f} % of its peak; {c.pairs:,} pairs.",
        "",
        "| step | PFLOP | hours | memory, GB | files, GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for cost in costs(c, train):
        hours, gigabytes = cost.seconds / 3600, (cost.memory / 1e9, cost.disk / 1e9)
        lines.append(
            f"| {cost.step} | {cost.flops / 1e15:,.1f} | {hours:.2f} | {gigabytes[0]:.1f} | {gigabytes[1]:.1f} |"
        )
    return "\n".join(lines) + "\n"
