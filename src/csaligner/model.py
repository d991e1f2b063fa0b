"""AlignedModel: an aligner with its encoders; encodes images and texts into one embedding space."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import BUNDLED as BUNDLED_FOLDER
from csaligner.adapters.aligner import Aligner, AlignerConfig, encode, with_states
from csaligner.adapters.folder import CONFIG, WEIGHTS
from csaligner.adapters.lora import FOLDERS, MARK, TunableEncoder, load_lora, lora_sides
from csaligner.adapters.start import Affine
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, encoder_name, has_two_towers, is_encoder_name, open_encoder
from csaligner.encoders.folder import no_downloads
from csaligner.store.decode_workers import prepared, wanted_size
from csaligner.store.tokens import MAX_STATES, token_encoder

from .checks import InputError
from .config import AdapterConfig
from .files import CHECKSUMS, move_up, sha256_of, write_folder, write_text
from .integrity import ErrorContext, read_sealed, write_sealed
from .parsing import checked
from .remote import local
from .run_folder import RECORD, encoders_of, model_folder
from .types import Encoder, EncoderInfo, ImageSource, Modality, TokenSets
from .urls import address, is_url

BUNDLED = "bundled"
ASSET = BUNDLED_FOLDER
ENCODERS = "encoders.json"
MODALITIES: tuple[Modality, Modality] = ("image", "text")
DEFAULTS: Mapping[Modality, str] = {"image": IMAGE_ENCODER, "text": TEXT_ENCODER}
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 64, 256
OWNER = ErrorContext("model", "save it again")

ImageLike = ImageSource | Image.Image | str


class AlignedModel:
    """An aligner with its encoders: f(x) = normalise(adapter(encoder(x))).

        model = AlignedModel.open("runs/coco")
        scores = model.encode_image(["cat.jpg", "dog.jpg"]) @ model.encode_text(["a cat"]).T  # cosines

    Encoders are opened on first use, with the LoRA weights of the run. Thread-safe.

    Attributes: name: source of the model; aligner: the adapters; infos: encoders by modality, as far as known; lora:
    modalities whose encoder has LoRA weights.
    """

    def __init__(
        self,
        aligner: Aligner,
        encoders: Iterable[Encoder] = (),
        *,
        infos: Mapping[Modality, EncoderInfo] | None = None,
        folder: Path | None = None,
        name: str = "the aligner",
        use_bundled: bool = False,
        downloads: bool = True,
    ) -> None:
        """Use AlignedModel.open for a model on disk.

        encoders: open encoders; infos: encoders to open by name on first use; folder: folder of the aligner and its
        LoRA weights; use_bundled: use the bundled encoder for a modality in neither `encoders` nor `infos`;
        downloads: whether an encoder that is not on this machine may be downloaded. For a modality with LoRA, an
        encoder given here is not modified; a second instance is opened.

        Raises InputError for an encoder that does not match `infos` or the aligner.
        """
        self.aligner, self.folder, self.name = aligner.eval(), folder, name
        self.lora: tuple[Modality, ...] = lora_sides(folder) if folder is not None else ()
        self.infos, self._use_bundled, self._downloads = dict(infos or {}), use_bundled, downloads
        self._encoders: dict[Modality, Encoder] = {}
        self._peft: dict[Modality, Any] = {}
        self._opening, self._encoding = threading.Lock(), threading.Lock()
        for encoder in encoders:
            side = encoder.info.modality
            self._check(encoder.info)
            self.infos[side] = encoder.info
            if side not in self.lora:
                self._encoders[side] = encoder
        for info in self.infos.values():
            self._check(info)

    def __repr__(self) -> str:
        c = self.aligner.config
        return f"AlignedModel({self.name}: image {c.dim_image}, text {c.dim_text} -> {c.dim} dimensions)"

    @classmethod
    def open(cls, name: str | Path | tuple[str, str], encoders: Iterable[Encoder | str] = ()) -> AlignedModel:
        """Open a model by name.

        name: a run folder, or its URL; a folder written by `save` or Aligner.save (also downloaded from the hub);
        "bundled"; or, without an aligner, the name of an encoder with two towers or the names of an image and a text
        encoder of equal dimension. encoders: open encoders or their names, instead of those recorded in the folder.

        Raises InputError for any other folder, a damaged folder, and encoders that the aligner was not trained with.
        """
        given = [open_encoder(encoder) if isinstance(encoder, str) else encoder for encoder in encoders]
        if isinstance(name, tuple):
            return cls.of_encoders(open_encoder(name[0], "image"), open_encoder(name[1], "text"), name=" + ".join(name))
        if is_encoder_name(str(name := encoder_name(str(name)))):
            sides = MODALITIES if has_two_towers(str(name)) else (None,)
            return cls.of_encoders(*(open_encoder(str(name), side) for side in sides), name=str(name))
        source = BUNDLED if name == BUNDLED else address(name)
        name = local(name) if is_url(name) else name
        folder, infos = _folder(name), dict(_infos(name))
        infos |= {encoder.info.modality: encoder.info for encoder in given}
        return cls(Aligner.load(folder), given, infos=infos, folder=folder, name=source, use_bundled=True)

    @classmethod
    def of_encoders(cls, *encoders: Encoder, name: str = "") -> AlignedModel:
        """Return a model without adapters: encoder features, scaled to unit length.

        Raises InputError if the encoders have different dimensions.
        """
        infos = {encoder.info.modality: encoder.info for encoder in encoders}
        dims = {info.dim for info in infos.values()}
        if len(dims) != 1:
            raise InputError(
                f"model: {' and '.join(info.id for info in infos.values())} have different dimensions "
                f"({', '.join(map(str, sorted(dims)))}); train an aligner on them and open its run folder"
            )
        (dim,), same = dims, AdapterConfig(name="identity")
        prints = {f"{side}_encoder": info.fingerprint for side, info in infos.items()}
        config = AlignerConfig(dim_image=dim, dim_text=dim, dim=dim, image_adapter=same, text_adapter=same)
        config = config.model_copy(update=prints)
        aligner = Aligner(config, (Affine.identity(dim), Affine.identity(dim)))
        return cls(aligner, encoders, name=name or " + ".join(info.id for info in infos.values()))

    @property
    def dim(self) -> int:
        """Dimension of the aligned space."""
        return self.aligner.config.dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the trained weights (adapters and LoRA), 16 hexadecimal digits."""
        if self.folder is not None:
            return fingerprint_of(self.folder)
        with tempfile.TemporaryDirectory() as scratch:
            self.aligner.save(Path(scratch) / "aligner")
            return fingerprint_of(Path(scratch) / "aligner")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities that can be encoded: "image", "text" or both."""
        return tuple(side for side in MODALITIES if self._can_encode(side))

    def info(self, side: Modality) -> EncoderInfo:
        """Return the EncoderInfo of a modality; opens the encoder only if none is recorded. Raises InputError."""
        return self.infos[side] if side in self.infos else self.encoder(side).info

    @property
    def open_encoders(self) -> tuple[Encoder, ...]:
        """The encoders that are open, with their LoRA weights."""
        with self._opening:
            return tuple(self._encoders.values())

    def encoder(self, side: Modality) -> Encoder:
        """Return the encoder of a modality, with its LoRA weights. Raises InputError if it cannot be opened.

        Encoders are opened one after another; one that is open can be used while the other is being opened."""
        if (found := self._encoders.get(side)) is not None:
            return found
        with self._opening:
            if side not in self._encoders:
                self._encoders[side] = self._open(side)
            return self._encoders[side]

    def encode_image(self, images: Sequence[ImageLike], batch_size: int = IMAGES_AT_ONCE) -> NDArray[np.float32]:
        """Encode images to (N, dim) float32 unit rows.

        images: paths, images inside archives or tables (types.StoredImage), or PIL images.

        Raises ImageError for an unreadable image, InputError if the model has no image encoder.
        """
        return self._rows("image", self.features_image(images, batch_size))

    def encode_text(self, texts: Sequence[str], batch_size: int = TEXTS_AT_ONCE) -> NDArray[np.float32]:
        """Encode texts to (N, dim) float32 unit rows. Raises InputError if the model has no text encoder."""
        return self._rows("text", self.features_text(texts, batch_size))

    def features_image(self, images: Sequence[ImageLike], batch_size: int = IMAGES_AT_ONCE) -> Tensor:
        """Return features of the image encoder, (N, dim_image) float32, before normalisation and adapter."""
        return self._features("image", images, batch_size)

    def features_text(self, texts: Sequence[str], batch_size: int = TEXTS_AT_ONCE) -> Tensor:
        """Return features of the text encoder, (N, dim_text) float32, before normalisation and adapter."""
        return self._features("text", texts, batch_size)

    def prepare(self, side: Modality, item: Any) -> Any:
        """Preprocess one image or text for the encoder. Raises ImageError for an unreadable image."""
        return prepared(self.encoder(side), Path(item) if side == "image" and isinstance(item, str) else item, side)

    def encode_prepared(self, side: Modality, ready: Sequence[Any]) -> Tensor:
        """Encode B > 0 items from `prepare` to features (B, dim_image or dim_text), float32, on the CPU.

        With a prior that reads the text encoder's hidden states, the features of texts are the prior's output (B, dim):
        a row of fixed length that holds all that `align` needs.
        """
        encoder = self.encoder(side)
        if side == "text" and self.aligner.reads_states:
            with self._encoding, torch.inference_mode():
                return self._prior(encoder, list(ready))
        batch = torch.stack(list(ready)) if isinstance(ready[0], Tensor) else list(ready)
        with self._encoding:
            return encoder.encode(cast(Sequence[Any], batch)).float()

    def align(self, side: Modality, features: Tensor) -> Tensor:
        """Map features (N, dim_image or dim_text) to unit rows (N, dim), on the CPU. Features of texts are those of
        `features_text`; with a prior that reads hidden states they are its output."""
        if side == "text" and self.aligner.reads_states:
            return normalize(features.float(), dim=1)
        return encode(self.aligner, side, features)

    @property
    def image_size(self) -> int:
        """Input size of the image encoder in pixels; larger images are reduced when decoded."""
        return wanted_size(self.info("image"))

    def trained_on(self, side: Modality) -> str | None:
        """Return the fingerprint of the encoder the adapter was trained with, without LoRA; None if not recorded."""
        found: str | None = getattr(self.aligner.config, f"{side}_encoder")
        return found and found.removesuffix(MARK)

    def save(self, folder: Path, readme: str = "") -> None:
        """Write adapters, LoRA weights, encoder names and, if not empty, README.md; the write is atomic. `open` reads
        the folder."""

        def write(temporary: Path) -> None:
            if self.folder is None:
                self.aligner.save(temporary / "aligner")
            else:
                _copy(self.folder, temporary / "aligner")
            move_up(temporary / "aligner")
            infos = {side: asdict(self.infos[side]) for side in MODALITIES if side in self.infos}
            write_sealed(temporary / ENCODERS, {"format_version": 1, "encoders": infos})
            if readme:
                write_text(temporary / "README.md", readme)

        write_folder(folder, write)

    def merge_lora(self) -> None:
        """Merge LoRA into the encoder weights, irreversibly: faster, equal up to rounding."""
        for side in self.lora:
            self.encoder(side)
            if side in self._peft:
                self._peft.pop(side).merge_and_unload()

    def _rows(self, side: Modality, features: Tensor) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self.align(side, features).numpy())

    def _features(self, side: Modality, items: Sequence[Any], batch_size: int) -> Tensor:
        if batch_size < 1:
            raise InputError(f"batch_size: got {batch_size}, wanted at least 1")
        if isinstance(items, str):
            raise InputError(f"{side}s: got a string, wanted a list of {side}s")
        chunks = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
        parts = [self.encode_prepared(side, [self.prepare(side, item) for item in chunk]) for chunk in chunks]
        if parts:
            return torch.cat(parts)
        own = side == "text" and self.aligner.reads_states
        return torch.empty(0, self.dim if own else getattr(self.aligner.config, f"dim_{side}"))

    def _prior(self, encoder: Encoder, ready: list[Any]) -> Tensor:
        found = token_encoder(encoder, "text").encode_with_tokens(ready)
        if found.states is None:
            raise InputError(f"text: {encoder.info.id} has no hidden states, which {self.name} reads")
        sets = TokenSets.of([states[:MAX_STATES] for states in found.states])
        return self.aligner.adapt_text(with_states(found.features.float(), sets)).cpu()

    def _can_encode(self, side: Modality) -> bool:
        try:
            return not self.info(side).id.startswith("precomputed:")
        except InputError:
            return False

    def _open(self, side: Modality) -> Encoder:
        info = self.infos.get(side)
        if info is None and not self._use_bundled:
            raise InputError(f"model: {self.name} has no {side} encoder; give one (encoders=)")
        with nullcontext() if self._downloads else no_downloads(self.name):
            encoder = open_encoder(DEFAULTS[side] if info is None else info.id, side)
        self._check(encoder.info)
        self.infos[side] = encoder.info
        if side in self.lora:
            assert self.folder is not None
            self._peft[side] = load_lora(self.folder, side, cast(TunableEncoder, encoder).tower)
        return encoder

    def _check(self, found: EncoderInfo) -> None:
        side, wanted = found.modality, self.infos.get(found.modality)
        if wanted is not None and wanted.fingerprint != found.fingerprint:
            raise InputError(
                f"encoder: got {found.id} ({found.fingerprint}), {self.name} uses {wanted.id} "
                f"({wanted.fingerprint}) for {side}s; use that one"
            )
        trained_on = self.trained_on(side)
        if trained_on is not None and trained_on != found.fingerprint:
            raise InputError(
                f"encoder: {self.name} was trained on {side} features of encoder {trained_on}, got {found.id} "
                f"({found.fingerprint}); give the right one (encoders=)"
            )
        dim = getattr(self.aligner.config, f"dim_{side}")
        if found.dim != dim:
            raise InputError(
                f"encoder: {self.name} wants {side} features of {dim} dimensions, {found.id} returns {found.dim}"
            )


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of the trained weights in a folder written by Aligner.save or LoRAAligner.save, 16
    hexadecimal digits."""
    digest = sha256_of(folder / WEIGHTS)
    for side in lora_sides(folder):
        digest += sha256_of(folder / FOLDERS[side] / "adapter_model.safetensors")
    return digest[:16] if len(digest) == 64 else hashlib.sha256(digest.encode()).hexdigest()[:16]


def _folder(name: str | Path) -> Path:
    if name == BUNDLED:
        return ASSET
    folder = Path(name)
    if (folder / RECORD).is_file():
        return model_folder(folder)
    if (folder / WEIGHTS).is_file():
        return folder
    what = "not a run folder or a saved aligner" if folder.is_dir() else "no such folder"
    raise InputError(
        f"run: {name}: {what}; give a run folder, 'bundled' or an encoder such as hf:openai/clip-vit-base-patch32"
    )


def _infos(name: str | Path) -> Mapping[Modality, EncoderInfo]:
    if (Path(name) / RECORD).is_file():
        return encoders_of(Path(name))
    if not (Path(name) / ENCODERS).is_file():
        return {}
    return read_sealed(
        Path(name) / ENCODERS, OWNER, lambda value: checked(dict[Modality, EncoderInfo], value["encoders"]), version=1
    )


def _copy(source: Path, target: Path) -> None:
    """Copy the files of the model, without the training state of a checkpoint."""
    target.mkdir()
    for name in (CONFIG, WEIGHTS, CHECKSUMS):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for side in lora_sides(source):
        shutil.copytree(source / FOLDERS[side], target / FOLDERS[side])
