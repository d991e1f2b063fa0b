"""Hugging Face Hub integration of aligners: save_pretrained, from_pretrained, push_to_hub and the model card."""

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
    """Contents of a model card. data: description of the training data; licence: SPDX or Hub identifier; encoders:
    names of the image and text encoders; metrics: name -> value, measured on `metrics_on`."""

    data: str
    licence: str
    encoders: tuple[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_on: str = "the test split"
    attribution: str = ""

    def text(self) -> str:
        """Return README.md, starting with the metadata block of the Hub."""
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

Adapters trained by csaligner with InfoNCE and the Cauchy-Schwarz divergence (CS-Aligner, arXiv 2502.17028). They
accept only features of `{self.encoders[0]}` (images) and `{self.encoders[1]}` (texts).

```python
from csaligner.adapters.aligner import Aligner

model = Aligner.from_pretrained("name of this repository, or a folder")
rows = model.encode_text(text_features)  # unit vectors, comparable with model.encode_image(image_features)
```

## Data

{self.data}
{attribution}
## Results

{table}"""


class HubMixin:
    """save_pretrained, from_pretrained and push_to_hub for a class with save and load."""

    def save_pretrained(self: Any, folder: str | Path, card: ModelCard | None = None) -> None:
        """Write the files of `save`, and README.md if a card is given."""

        def write(temporary: Path) -> None:
            self.save(temporary / "model")
            move_up(temporary / "model")
            if card is not None:
                write_text(temporary / "README.md", card.text())

        write_folder(Path(folder), write)

    @classmethod
    def from_pretrained(cls: type[T], name: str | Path, revision: str | None = None) -> T:
        """Load a model from a folder, or from a Hub repository at `revision` (branch, tag or commit; default: main).

        Downloads only config.json, model.safetensors and README.md. Raises InputError.
        """
        if Path(name).is_dir():
            return cast(T, cast(Any, cls).load(Path(name)))
        if str(name).startswith((".", "/", "~")) or str(name).count("/") != 1:
            raise InputError(f"from_pretrained: no such folder: {name}")
        hub = _hub()
        try:
            folder = hub.snapshot_download(str(name), revision=revision, allow_patterns=list(FILES))
        except Exception as error:  # the Hub client raises many exception types
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"from_pretrained: {name!r} could not be downloaded from the Hub ({reason})") from None
        return cast(T, cast(Any, cls).load(Path(folder)))

    def push_to_hub(self, repository: str, card: ModelCard, *, private: bool = False, token: str | None = None) -> str:
        """Upload the files of save_pretrained; creates the repository if needed. Returns its URL.

        Raises InputError if the Hub rejects the upload or cannot be reached.
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
                raise InputError(f"push_to_hub: {repository!r} could not be uploaded ({reason})") from None
        return str(address)


def _hub() -> Any:
    import huggingface_hub  # half a second of import time

    return huggingface_hub
