"""Record of a selection: the chosen start, the gate, one line for people and selection.json in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csaligner.config import TrainConfig
from csaligner.integrity import ErrorContext, read_sealed, write_sealed
from csaligner.names import Names
from csaligner.wording import count_of, signed

from .gate import LEAST_IMAGES, GateChoice
from .start import StartChoice

SELECTION = "selection.json"
OWNER = ErrorContext("selection", "delete the run folder and train again")


@dataclass(frozen=True)
class Selection:
    """start: choice of the untrained alignment, None if fixed by the config; gate: choice of the gate, None without;
    note: why a setting of the config does not apply, if so."""

    start: StartChoice | None
    gate: GateChoice | None
    note: str = ""

    def record(self) -> dict[str, Any]:
        """Return the selection for JSON."""
        choices = {name: choice.record() for name, choice in (("start", self.start), ("gate", self.gate)) if choice}
        return choices | {"note": self.note, "line": self.line}

    @classmethod
    def of_record(cls, value: dict[str, Any]) -> Selection:
        """Inverse of `record`, without the fitted starts."""
        start = StartChoice.of_record(value["start"]) if "start" in value else None
        gate = GateChoice.of_record(value["gate"]) if "gate" in value else None
        return cls(start, gate, str(value.get("note", "")))

    def __str__(self) -> str:
        return self.line

    @property
    def line(self) -> str:
        """Summary in one line."""
        return self.line_of(Names())

    def line_of(self, names: Names) -> str:
        """The same with names of the two spaces."""
        tail = f" ({self.note})" if self.note else ""
        if self.gate is None:
            how = "chosen by cross-validation" if self.start else "a closed-form map"
            return f"start: the untrained alignment, {how}{tail}"
        gain = self.gate.best
        if gain is None:
            why = f"it takes {LEAST_IMAGES} {names.fill('{images}')} to measure whether it helps"
            return f"training was skipped: {why}{tail}"
        changed = f"changed the search score by {signed(gain.mean)} points (standard error {gain.error:.1f})"
        part = self.gate.part
        held = count_of(self.gate.images, names.fill(f"{part} {{image}}"), names.fill(f"{part} {{images}}"))
        measured = f"on {held}, it {changed}"
        if self.gate.scale == 0:
            return f"training did not clearly help and is not kept: {measured}{tail}"
        part = "" if self.gate.scale == 1 else f"; {self.gate.scale:.0%} of what it changed is used"
        return f"training helped: {measured}{part}{tail}"

    @property
    def rejected(self) -> bool:
        """Whether the gate rejected or skipped training, so that the untrained alignment is the result."""
        return self.gate is not None and self.gate.scale == 0


def note_of(config: TrainConfig) -> str:
    """Return which of the settings start.kind=chosen and gate do not apply to this config, and why; usually empty."""
    adapters = sorted({config.image_adapter.name, config.text_adapter.name})
    notes = []
    if config.start.kind == "chosen" and not config.chooses_start:
        notes.append(f"no start is chosen with the adapters {' and '.join(adapters)}")
    if config.gate and not config.gates and config.epochs != 0:
        why = "LoRA" if config.lora else "random weights" if config.start.kind == "random" else " and ".join(adapters)
        notes.append(f"training is not gated with {why}")
    return "; ".join(notes)


def write_selection(run: Path, selection: Selection) -> None:
    """Write selection.json with its checksum."""
    write_sealed(run / SELECTION, selection.record())


def read_selection(run: Path) -> Selection | None:
    """Read selection.json; None if the run has none. Raises InputError if it is damaged."""
    if not (run / SELECTION).exists():
        return None
    return read_sealed(run / SELECTION, OWNER, Selection.of_record, made_by="`csaligner train`")
