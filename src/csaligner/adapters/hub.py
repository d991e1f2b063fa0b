"""Aligners on the Hugging Face hub: a thin layer over save and load, with a model card that is filled in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from csaligner.checks import InputError
from csaligner.files import move_up, write_folder, write_text

T = TypeVar("T", bound="HubMixin")
FILES = ("config.json", "model.safetensors", "README.md")


@dataclass(frozen=True)
class ModelCard:
    """What a reader must know. data: what it was trained on; licence: SPDX or a name of the hub; encoders: image and
    text, by name; metrics: measured values by name, and on what (metrics_on)."""

    data: str
    licence: str
    encoders: tuple[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_on: str = "the test split"
    attribution: str = ""

    def text(self) -> str:
        """README.md with the metadata that the hub reads on top."""
        from huggingface_hub import ModelCardData

        tags = ["csaligner", "image-text-retrieval", "modality-gap"]
        metadata = ModelCardData(library_name="csaligner", license=self.licence, tags=tags).to_yaml()
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in self.metrics.items())
        table = (
            f"Measured on {self.metrics_on}:\n\n| metric | value |\n|---|---|\n{rows}\n" if rows else "Not measured.\n"
        )
        attribution = f"\n{self.attribution}\n" if self.attribution else ""
        return f"""---
{metadata}
---

# Image and text embeddings in one space

Adapters that csaligner trained with InfoNCE and the Cauchy-Schwarz divergence (CS-Aligner, arXiv 2502.17028). They take
features of `{self.encoders[0]}` (images) and `{self.encoders[1]}` (texts) and of no other encoder.

```python
from csaligner.adapters.aligner import Aligner

model = Aligner.from_pretrained("this repository, or a folder")
rows = model.encode_text(text_features)  # length 1, beside model.encode_image(image_features)
```

## Data

{self.data}
{attribution}
## Results

{table}"""


class HubMixin:
    """save_pretrained, from_pretrained and push_to_hub for a class with save and load."""

    def save_pretrained(self: Any, folder: str | Path, card: ModelCard | None = None) -> None:
        """What save writes, and README.md where there is a card."""

        def write(temporary: Path) -> None:
            self.save(temporary / "model")
            move_up(temporary / "model")
            if card is not None:
                write_text(temporary / "README.md", card.text())

        write_folder(Path(folder), write)

    @classmethod
    def from_pretrained(cls: type[T], name: str | Path, revision: str | None = None) -> T:
        """name: a folder, or a repository of the hub, read at `revision` (branch, tag, commit; the main branch).

        Only config.json and model.safetensors are fetched. Raises InputError, one line.
        """
        if Path(name).is_dir():
            return cast(T, cast(Any, cls).load(Path(name)))
        if str(name).startswith((".", "/", "~")) or str(name).count("/") != 1:
            raise InputError(f"from_pretrained: no such folder: {name}")
        hub = _hub()
        try:
            folder = hub.snapshot_download(str(name), revision=revision, allow_patterns=list(FILES))
        except Exception as error:  # the hub's client has many kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"from_pretrained: {name!r} could not be downloaded from the hub ({reason})") from None
        return cast(T, cast(Any, cls).load(Path(folder)))

    def push_to_hub(self, repository: str, card: ModelCard, *, private: bool = False, token: str | None = None) -> str:
        """Upload what save_pretrained writes; makes the repository where it is not there. Returns its address.

        Raises InputError where the hub refuses or cannot be reached.
        """
        hub = _hub()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, card)
            try:
                api = hub.HfApi(token=token)
                address = api.create_repo(repository, private=private, exist_ok=True)
                api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Upload aligner")
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"push_to_hub: {repository!r} was not written ({reason})") from None
        return str(address)


def _hub() -> Any:
    import huggingface_hub  # half a second of import time

    return huggingface_hub
