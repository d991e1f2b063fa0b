"""Linear probe of the modality: held-out accuracy of a classifier that predicts image or text."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn.functional import softplus

from csaligner.adapters.moments import unit
from csaligner.paired_features import first_captions

HALVINGS = 10
MAX_IMAGES = 2000


def probe_accuracy(image: Tensor, text: Tensor, text_to_image: Tensor, *, seed: int = 0, scale: bool = False) -> float:
    """Held-out accuracy of L2-regularised logistic regression on (image, 0), (text, 1), one caption per image.

    The probe is trained on half of the images with their captions and tested on the other half; mean over 10 random
    splits, each used both ways. Pairs are never divided by a split: paired rows are close, so splitting rows
    independently biases the accuracy downwards and hides a small gap (CLIP on COCO, mean-centred: 0.55 with paired,
    0.47 with independent splits). Two samples of one distribution give 0.5 on average.
    At most 2,000 images. NaN for fewer than 4 images.
    image: (N, d), text: (M, d), unit rows; scale: rows of any length, to be scaled to unit length in float64.
    """
    n = len(image)
    if n < 4:
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n, generator=generator)[:MAX_IMAGES]
    points = [image[rows], text[first_captions(text_to_image, n)[rows]]]
    both = torch.stack([unit(p).float() for p in points] if scale else points)  # (2, n, d)
    accuracies = []
    for _ in range(HALVINGS):
        order = torch.randperm(len(rows), generator=generator)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for train, test in (halves, halves[::-1]):
            accuracies.append(_accuracy(both[:, train], both[:, test]))
    return sum(accuracies) / len(accuracies)


def _accuracy(train: Tensor, test: Tensor) -> float:
    weight, bias = fit_logistic(train.flatten(0, 1), _labels(train))
    guessed = test.flatten(0, 1) @ weight + bias
    right = torch.where(guessed == 0, 0.5, ((guessed > 0) == _labels(test).bool()).float())
    return float(right.mean())


def _labels(points: Tensor) -> Tensor:
    return torch.arange(2).repeat_interleave(points.shape[1]).to(points.dtype)


class _LBFGS(torch.optim.LBFGS):
    """torch.optim.LBFGS without the wrapper that imports torch.compile; see training.optimizer.AdamW."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


def fit_logistic(x: Tensor, labels: Tensor, c: float = 1.0) -> tuple[Tensor, Tensor]:
    """argmin over (w, b) of 1/2 |w|^2 + c * sum of logistic losses; equals scikit-learn's LogisticRegression(C=c)."""
    weight, bias = x.new_zeros(x.shape[1]), x.new_zeros(1)
    optimizer = _LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-4)

    def closure() -> Tensor:
        logits = x @ weight + bias
        slope = c * (logits.sigmoid() - labels)
        weight.grad, bias.grad = weight + slope @ x, slope.sum().reshape(1)
        return 0.5 * weight.square().sum() + c * (softplus(logits) - labels * logits).sum()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight, bias
