"""Signature checks of registered divergences and paired losses, and adapters to one calling convention.

Every divergence and paired loss is called as function(x, y, **keywords): the two samples by position, other arguments
by name, restricted to the keywords that the function accepts. torch is imported only when a function is adapted, so the
command line can read the registries without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from .checks import InputError

if TYPE_CHECKING:
    from torch import Tensor

DIVERGENCE_KEYWORDS = ("weights_x", "weights_y", "impl", "bandwidth")
PAIRED_LOSS_KEYWORDS = ("logit_scale", "ids_x", "ids_y")
_IDS = {"ids_x", "ids_y"}


def adapt_divergence(name: str, function: Any) -> Callable[..., Tensor]:
    """Return `function` as types.Divergence with the keywords DIVERGENCE_KEYWORDS; unsupported keywords are dropped.

    Row weights change the value and are not dropped: a call with unequal weights raises InputError if the function does
    not support them, as does a result that is not a scalar. Raises InputError if not callable with two samples.
    """
    accepted = accepted_keywords(name, function, DIVERGENCE_KEYWORDS)

    @wraps(function, updated=())
    def divergence(x: Tensor, y: Tensor, *more: Any, **options: Any) -> Tensor:
        for key in ("weights_x", "weights_y"):
            if key not in accepted and _unequal(options.get(key)):
                raise InputError(
                    f"{name}: the rows have unequal weights, but the function does not accept {key}; "
                    "add the keywords weights_x and weights_y to it"
                )
        kept = {k: v for k, v in options.items() if k in accepted or k not in DIVERGENCE_KEYWORDS}
        return _scalar(name, function(x, y, *more, **kept))

    return divergence


def adapt_paired_loss(name: str, function: Any) -> Callable[..., Tensor]:
    """Return `function` as types.PairedLoss, with the keywords logit_scale, ids_x and ids_y.

    A function without ids is called with matched rows, x[i] and y[j] once for each pair with equal ids >= 0.
    Raises InputError if not callable with two samples, or if it accepts only one of the ids; in a call, if the result
    is not a scalar.
    """
    accepted = accepted_keywords(name, function, PAIRED_LOSS_KEYWORDS)
    if len(_IDS & accepted) == 1:
        raise InputError(
            f"{name}: accepts only one of ids_x and ids_y; wanted both, or neither to receive matched rows"
        )

    @wraps(function, updated=())
    def paired_loss(x: Tensor, y: Tensor, *, logit_scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
        options = {"logit_scale": logit_scale, "ids_x": ids_x, "ids_y": ids_y}
        if not accepted >= _IDS:
            rows, columns = ((ids_x[:, None] == ids_y) & (ids_y >= 0)).nonzero(as_tuple=True)
            x, y = x[rows], y[columns]
        return _scalar(name, function(x, y, **{k: v for k, v in options.items() if k in accepted}))

    return paired_loss


def accepted_keywords(name: str, function: Any, keywords: Sequence[str]) -> frozenset[str]:
    """Return the keywords that function(x, y, ...) accepts. Raises InputError if not callable with two samples."""
    wanted = f"wanted a function of two samples (x, y) and any of the keywords {', '.join(keywords)}"
    from torch import nn

    if isinstance(function, type) or not callable(function):
        raise InputError(f"{name}: got {function!r}; {wanted}")
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # no signature (written in C): pass only the samples
        return frozenset()
    parameters = signature.parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    accepted = frozenset(keywords) if takes_any else frozenset(keywords) & names
    try:
        signature.bind(None, None, **dict.fromkeys(accepted))
    except TypeError as error:
        raise InputError(f"{name}: got a function of {signature}, which fails with {error}; {wanted}") from None
    return accepted


def _unequal(weights: Any) -> bool:
    import torch

    if weights is None:
        return False
    values = torch.as_tensor(weights)
    return bool((values != values.flatten()[0]).any())


def _scalar(name: str, value: Any) -> Tensor:
    from torch import Tensor

    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name}: returned {got}, wanted a tensor with one value")
    return value.reshape(())
