"""Result on held-out pairs in one sentence: how often a caption finds its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from csaligner.names import Names
from csaligner.wording import count_of

K = 10
METRIC = f"text_to_image_recall@{K}"
FEW = 30  # held-out images below which the result is only a hint
NAMES = {
    "trained": "trained aligner",
    "untrained": "untrained alignment",
    "bundled": "bundled aligner",
    "encoders": "encoders without an aligner",
}


@dataclass(frozen=True)
class HeldOut:
    """Recall@10 from captions to images among held-out images, which were not used for training.

    images: their number; found: fraction of the captions whose image is among the first 10; others: the same for
    other methods, by name; used: name of the method of `found`; part: which images they are, in words. NAMES has the
    names. Chance is 10 / images.
    """

    images: int
    found: float
    others: Mapping[str, float] = field(default_factory=dict)
    used: str = "trained"
    part: str = "held-out"

    @property
    def chance(self) -> float:
        return min(1.0, K / self.images)

    @property
    def line(self) -> str:
        """The result as a sentence.

        >>> HeldOut(143, 0.68).line
        'the trained aligner: 68 % of captions find their image in the first 10 of 143 held-out images (chance 7 %)'
        """
        return self._line(Names())

    def _line(self, names: Names) -> str:
        others = [(NAMES.get(name, name), value) for name, value in self.others.items()]
        words = ", ".join(f"{name} {100 * value:.0f} %" for name, value in [*others, ("chance", self.chance)])
        return (
            f"the {NAMES.get(self.used, self.used)}: "
            f"{100 * self.found:.0f} % of {names.fill('{captions} find their {image}')} in the first "
            f"{min(K, self.images)} of {self._images(names)} ({words})"
        )

    @property
    def warning(self) -> str:
        """A warning if there are too few held-out images for the numbers to mean much, else ""."""
        return self._warning(Names())

    def _warning(self, names: Names) -> str:
        if self.images >= FEW:
            return ""
        return f"only {self._images(names)}: these numbers may be off by 20 points or more"

    def _images(self, names: Names) -> str:
        return count_of(self.images, names.fill(f"{self.part} {{image}}"), names.fill(f"{self.part} {{images}}"))

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentence and, if there is one, the warning."""
        return self.lines_of(Names())

    def lines_of(self, names: Names) -> tuple[str, ...]:
        """The same with names of the two spaces."""
        warning = self._warning(names)
        return (self._line(names), *([f"warning: {warning}"] if warning else []))
