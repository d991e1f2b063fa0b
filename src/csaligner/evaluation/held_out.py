"""Result on held-out pairs in one sentence: how often a caption finds its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

K = 10
METRIC = f"text_to_image_recall@{K}"
FEW = 30  # held-out images below which the result is only a hint


@dataclass(frozen=True)
class HeldOut:
    """Recall@10 from captions to images among held-out images, which were not used for training.

    images: their number; found: fraction of the captions whose image is among the first 10; others: the same for
    other methods, by name. Chance is 10 / images.
    """

    images: int
    found: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def chance(self) -> float:
        return min(1.0, K / self.images)

    @property
    def line(self) -> str:
        """The result as a sentence.

        >>> HeldOut(143, 0.68, {"untrained": 0.67}).line
        'finds the right image among 143 in the first 10: 68 % (untrained 67 %, chance 7 %)'
        """
        beside = [*self.others.items(), ("chance", self.chance)]
        words = ", ".join(f"{name} {100 * value:.0f} %" for name, value in beside)
        return f"finds the right image among {self.images} in the first {K}: {100 * self.found:.0f} % ({words})"

    @property
    def warning(self) -> str:
        """A warning if there are too few held-out images for the numbers to mean much, else ""."""
        if self.images >= FEW:
            return ""
        return f"only {self.images} images were held out: these numbers may be off by 20 points or more"

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentence and, if there is one, the warning."""
        return (self.line, *([f"warning: {self.warning}"] if self.warning else []))
