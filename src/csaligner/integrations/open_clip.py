"""Drop-in replacement for open_clip's ClipLoss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.distributed import processes
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth


class CSAlignerClipLoss(nn.Module):
    """InfoNCE + weight * D_CS with the arguments, inputs and outputs of open_clip's ClipLoss.

    rank, world_size: as passed by open_clip; they must match the process group, which the loss always gathers over,
    even if they are not given. local_loss, gather_with_grad, cache_labels: accepted and ignored; every rank computes
    the loss of the global batch, with the gradients of all rows. If the gathered batch is too large, use
    exchange="ring" in place of local_loss. use_horovod must be False.
    weight, bandwidth and options (impl, kernel, exchange) as in CSAlignerLoss. The module holds no
    parameters. open_clip itself is not imported. Raises InputError.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        weight: float = 1.0,
        bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
        **options: str,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise InputError("use_horovod: got True, which is not supported; start the processes with torchrun")
        self._claimed = (rank, world_size)
        self.loss = CSAlignerLoss(weight, bandwidth, **options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the total, or with output_dict {"contrastive_loss", "cs_loss"}, whose sum is the total.

        image_features, text_features: (n, d), unit rows, as returned by open_clip's models; logit_scale: 1/temperature,
        already exponentiated. logit_bias has no effect on a softmax; it receives a gradient of 0,
        which DistributedDataParallel requires. Raises InputError.
        """
        self._check_ranks()
        parts = self.loss(image_features, text_features, logit_scale).parts
        contrastive = parts["info_nce"]
        if logit_bias is not None:
            contrastive = contrastive + 0 * logit_bias.sum()
        cs = parts.get("cauchy_schwarz", torch.zeros_like(contrastive))
        return {"contrastive_loss": contrastive, "cs_loss": cs} if output_dict else contrastive + cs

    def _check_ranks(self) -> None:
        rank, world_size = self._claimed
        if world_size > 1 and (rank, world_size) != (processes.rank(), processes.world_size()):
            raise InputError(
                f"rank {rank} of world_size {world_size}: torch.distributed is at rank {processes.rank()} of "
                f"{processes.world_size()}; initialise the process group first and pass its rank and world size"
            )
