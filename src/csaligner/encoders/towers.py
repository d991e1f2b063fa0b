"""Text towers: transformers models with pooling."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from csaligner.checks import CSAlignerError

from .text import States, last_state, masked_mean

Pooling = Literal["mean", "last", "cls"]


class ProjectedTextTower(nn.Module):
    """The text tower of CLIP (pooled state, projected) or SigLIP (its head): `pooled` is the model's own output.

    with_mask: whether the model was trained with an attention mask; SigLIP was not.
    """

    def __init__(self, model: Any, with_mask: bool) -> None:
        super().__init__()
        self.model, self._with_mask = model, with_mask

    @property
    def backbone(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def forward(self, inputs: Mapping[str, Tensor]) -> States:
        mask = {"attention_mask": inputs["attention_mask"]} if self._with_mask else {}
        out = self.model(input_ids=inputs["input_ids"], **mask)
        projected = getattr(out, "text_embeds", None)
        return States(out.pooler_output if projected is None else projected, out.last_hidden_state)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Apply CLIP's text projection, which maps the pooled state to the features, to every state."""
        projection = getattr(self.model, "text_projection", None)
        found: Tensor = tokens if projection is None else projection(tokens)
        return found


class PooledTextTower(nn.Module):
    """Any model with last_hidden_state, pooled over its tokens.

    over: "all" includes special tokens in the mean, as sentence encoders are trained; "content" excludes them, since
    the first state of a causal language model is large and carries no content (attention sink).
    """

    def __init__(self, model: Any, pooling: Pooling, over: Literal["all", "content"] = "all") -> None:
        super().__init__()
        self.model, self._pooling, self._over = model, pooling, over
        self._takes = set(inspect.signature(model.forward).parameters)

    @property
    def backbone(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def forward(self, inputs: Mapping[str, Tensor]) -> States:
        known = {key: value for key, value in inputs.items() if key in self._takes}
        states: Tensor = self.model(**known).last_hidden_state
        attended = inputs["attention_mask"].bool()
        if self._pooling == "cls":
            return States(states[:, 0], states)
        if self._pooling == "last":
            return States(last_state(states, attended), states)
        mask = attended
        if self._over == "content":
            content = inputs["content_mask"]
            mask = torch.where(content.any(1, keepdim=True), content, attended)
        return States(masked_mean(states, mask), states)


class SentenceTower(nn.Module):
    """A SentenceTransformer without its normalisation."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def backbone(self) -> nn.Module:
        model: nn.Module = self.model[0].auto_model
        return model

    def forward(self, inputs: Mapping[str, Tensor]) -> States:
        out = self.model({key: value for key, value in inputs.items() if key != "content_mask"})
        return States(out["sentence_embedding"], out.get("token_embeddings"))


def make_bidirectional(model: Any) -> None:
    """Let each token of a causal language model attend to later tokens as well.

    Raises CSAlignerError if the model ignores the setting. Checked with and without padding (older versions of
    transformers apply it only without): the first state must change if a later token changes.
    """
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    rows = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4]], device=model.device)
    if any(_first_state_stays(model, rows, torch.tensor(mask)) for mask in ((1, 1, 1, 1), (1, 1, 1, 0))):
        import transformers

        raise CSAlignerError(
            f"encoder: {type(model).__name__} of transformers {transformers.__version__} stays causal; "
            "remove bidirectional, or upgrade transformers"
        )


@torch.inference_mode()
def _first_state_stays(model: Any, rows: Tensor, mask: Tensor) -> bool:
    """Return whether both rows have the same first state under that mask."""
    mask = mask.to(rows.device).expand_as(rows).contiguous()
    first = model(input_ids=rows, attention_mask=mask).last_hidden_state[:, 0]
    return torch.equal(first[0], first[1])
