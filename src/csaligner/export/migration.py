"""Export of a migration: the query-side adapter in several formats, the aligner, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.files import write_folder, write_json, write_text
from csaligner.spaces.migration import Migration
from csaligner.spaces.unpaired import UnpairedStart

from .export import export_aligner

README = """# {new} queries on the {old} index

{sentence}

`aligner`: read by csaligner's CSAligner.load; `transform_text` maps vectors of {new}. In the other folders, the files
named text are the adapter of {new}; image stands for {old}, whose vectors are only scaled to unit length.
"""


def export_migration(
    found: Migration | UnpairedStart, out: Path, formats: Sequence[str], encoder: str | None = None
) -> tuple[Path, ...]:
    """Write `out`: the aligner, one folder per format, migration.json and README.md; returns what was written.

    formats: npz, onnx, safetensors, or sentence-transformers, which contains `encoder`, the new model, so that
    SentenceTransformer(FOLDER).encode(texts) gives vectors for the old index. Raises InputError if `out` exists and if
    the encoder's dimensions are not those of the new vectors.
    """
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        found.aligner.save(folder / "aligner")
        for format in formats:
            if format == "sentence-transformers":
                _sentence_transformer(found, encoder or "", folder / format)
            else:
                export_aligner(found.aligner, folder / format, format)
        write_json(folder / "migration.json", found.record())
        words = README.format(new=found.names[0], old=found.names[1], sentence=found.sentence)
        write_text(folder / "README.md", words)

    write_folder(out, write)
    return tuple(sorted(out.iterdir()))


def _sentence_transformer(found: Migration | UnpairedStart, name: str, folder: Path) -> None:
    from csaligner.checks import InputError
    from csaligner.encoders import open_encoder

    from .sentence_transformers import save_sentence_transformer

    encoder = open_encoder(name, "text")
    wanted = found.aligner.config.dim_text
    if encoder.info.dim != wanted:
        raise InputError(
            f"encoder: {name} has {encoder.info.dim} dimensions, the vectors of {found.names[0]} have {wanted}; give "
            "the model that embedded them"
        )
    save_sentence_transformer(found.aligner, encoder, folder)
