"""InfoNCE + D_CS as a loss for SentenceTransformerTrainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.checks import InputError, check_positive
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth

CITATION = """
@inproceedings{yin2026distributional,
    title={Distributional Vision-Language Alignment by Cauchy-Schwarz Divergence},
    author={Wenzhe Yin and Zehao Xiao and Pan Zhou and Shujian Yu and Jiayi Shen and Jan-Jakob Sonke and Efstratios
        Gavves},
    booktitle={International Conference on Learning Representations},
    year={2026},
    url={https://arxiv.org/abs/2502.17028},
}
"""


class CSAlignerEmbeddingLoss(nn.Module):
    """InfoNCE + weight * D_CS between the columns (anchor, positive) of a dataset: two languages, queries and
    documents, or captions and images of a multimodal model.

        loss = CSAlignerEmbeddingLoss(model, weight=1.0)
        SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss).train()

    model: a SentenceTransformer, or a callable that maps the features of a column to {"sentence_embedding": (N, d)}.
    scale: 1/temperature, 20 as in MultipleNegativesRankingLoss. weight, bandwidth and options (impl, kernel, exchange)
    as in CSAlignerLoss: exchange="gather" computes the loss of the global batch. output_dict: return the
    terms by name, which the trainer sums and logs; wrapper losses need the default, one scalar.
    Pairs with equal integers in a column "label" are not negatives of each other. Embeddings are normalised here.
    sentence_transformers itself is not imported. Raises InputError.
    """

    def __init__(
        self,
        model: Any,
        scale: float = 20.0,
        weight: float = 1.0,
        bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
        output_dict: bool = False,
        **options: str,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = CSAlignerLoss(weight, bandwidth, **options)
        self._scale, self._output_dict = check_positive("scale", scale), output_dict
        self._config = {"scale": scale, "weight": weight, "bandwidth": bandwidth, **options}

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss. sentence_features: the tokenised columns, as passed by the trainer. labels: (N,) or None."""
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: Sequence[Tensor], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of precomputed embeddings: the anchors (N, d) and the positives (N, d)."""
        if len(embeddings) != 2:
            raise InputError(f"dataset: got {len(embeddings)} text columns, wanted two, (anchor, positive)")
        if labels is not None and labels.is_floating_point():
            raise InputError("label: got floats, wanted whole numbers, or no such column")
        full = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in embeddings)
        anchors, positives = (normalize(each, dim=1) for each in full)
        loss = self.loss(anchors, positives, self._scale, labels)
        return dict(loss.parts) if self._output_dict else loss.total

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings listed in the model card."""
        return dict(self._config)

    @property
    def citation(self) -> str:
        return CITATION
