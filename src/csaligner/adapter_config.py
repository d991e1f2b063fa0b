"""Config of an adapter, stored in the files of an aligner."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .checks import nearest
from .registry import ADAPTERS

FIXED = ("identity", "standardise", "centre")  # adapters without learned parameters


class Strict(BaseModel):
    """A frozen config; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterConfig(Strict):
    """Config of one adapter. `identity` only L2-normalises the features.

    onto: the adapter maps onto the fixed modality; a learnt number is the distance of its rows from that modality's
    centre, initialised by the start (adapters/start.py). Of a prior (adapters/prior.py): heads (default: of 32
    dimensions), noise (seed of its noise slot; none: zeros), states (set by training, if the store has tokens:
    dimensions of the text encoder's hidden states).
    """

    name: str = "mlp"
    hidden: Annotated[int, Field(ge=1)] = 512
    blocks: Annotated[int, Field(ge=1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    onto: bool = False
    heads: Annotated[int, Field(ge=1)] | None = None
    noise: Annotated[int, Field(ge=0)] | None = None
    states: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what only a prior has, so that files of other adapters are the same as before version 0.4."""
        return {k: v for k, v in write(self).items() if v is not None or k not in {"heads", "noise", "states"}}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ADAPTERS:
            raise ValueError(f"{name!r} is not known; {nearest(name, ADAPTERS)}")
        return name
