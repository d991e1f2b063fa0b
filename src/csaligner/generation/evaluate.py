"""Evaluation of generated images (`csaligner eval --task generation`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.datasets.images.load import load_image
from csaligner.decoders.decoder import Decoder, Sampling, open_decoder, read_contract
from csaligner.encoders import open_encoder
from csaligner.encoders.pixels import fit_square
from csaligner.evaluation.generation import Projection, frechet_distance, generation_metrics, text_agreement
from csaligner.evaluation.retrieval import retrieval_of
from csaligner.files import write_json
from csaligner.model import AlignedModel
from csaligner.paired_features import first_captions
from csaligner.run_folder import training_store
from csaligner.store.store import Store
from csaligner.types import Encoder, ImageSource, PairedFeatures, Split

from .generate import no_picture
from .pictures import image_encoder, picture_sources
from .text import TextToEmbedding

DRAWN, FITTED, GENERATION = 224, 2000, "generation.json"


@dataclass(frozen=True)
class MeasuringProtocol:
    """split: generates one image per image of the split, from its first caption, at most `limit`; dims: number of
    principal directions of the training features for Frechet distances (None: all dimensions); force: compute them
    even for fewer images than dimensions."""

    split: Split = "test"
    limit: int | None = None
    dims: int | None = 64
    force: bool = False


class Reference:
    """Real images of a split at the decoder's size, with their features; shared by all methods."""

    def __init__(self, store: Store, encoder: Encoder, side: int, protocol: MeasuringProtocol) -> None:
        """encoder: feature network of the metrics (for example Inception for FID, CLIP for CMMD)."""
        self.pairs = one_caption_each(store.features(protocol.split), protocol.limit)
        self.train = store.features("train").image
        self.encoder, self.side, self.protocol = encoder, side, protocol
        sources = picture_sources(store, self.pairs.image_ids)
        self.pictures = [fit_square(load_image(source, DRAWN), side) for source in sources]
        self.features = picture_features(encoder, self.pictures)
        same = store.manifest.image is not None and store.manifest.image.fingerprint == encoder.info.fingerprint
        self.project = None
        if protocol.dims:
            train = self.train if same else _features_of_train(store, encoder)
            self.project = Projection.fit(train, protocol.dims)

    def measure(self, pictures: Sequence[Image.Image]) -> dict[str, float]:
        """Return fid, kid and cmmd of generated images, and picture_cosine: mean cosine of each generated image with
        its real image, features centred on the real mean."""
        return self.measure_features(picture_features(self.encoder, pictures))

    def measure_features(self, found: Tensor) -> dict[str, float]:
        """Return measure() of images with features (N, d)."""
        centre = self.features.mean(dim=0)
        cosine = text_agreement(found - centre, self.features - centre) / 100
        metrics = generation_metrics(self.features, found, project=self.project, force=self.protocol.force)
        return metrics | {"picture_cosine": cosine}


def picture_features(encoder: Encoder, pictures: Sequence[Image.Image | ImageSource]) -> Tensor:
    """Return features (N, d); real and generated images have the same preprocessing."""
    return AlignedModel.of_encoders(encoder).features_image(pictures, batch_size=32)


def _features_of_train(store: Store, encoder: Encoder) -> Tensor:
    """Return features of at most FITTED training images, for the principal directions."""
    sources = picture_sources(store, store.features("train").image_ids[:FITTED])
    return picture_features(encoder, sources)


def one_caption_each(pairs: PairedFeatures, limit: int | None = None) -> PairedFeatures:
    """Return the first caption of each of at most `limit` images: row i matches image i."""
    n = min(len(pairs.image), limit or len(pairs.image))
    rows = first_captions(pairs.text_to_image, len(pairs.image))[:n]
    captions = tuple(pairs.captions[row] for row in rows.tolist()) if pairs.captions else None
    return PairedFeatures(pairs.image[:n], pairs.text[rows], torch.arange(n), pairs.image_ids[:n], captions)


def embedding_metrics(text: TextToEmbedding, reference: Reference) -> dict[str, float]:
    """Compare predicted and real image embeddings, without a decoder: Frechet distance (in principal directions of
    the training data), paired cosine and text-to-image recall."""
    model, pairs = text.model, reference.pairs
    predicted, real = model.align("text", pairs.text), model.align("image", pairs.image)
    both = (real, predicted)
    if reference.protocol.dims:
        project = Projection.fit(model.align("image", reference.train), reference.protocol.dims)
        both = (project(real), project(predicted))
    recall = retrieval_of(PairedFeatures(real, predicted, pairs.text_to_image, pairs.image_ids))
    return {
        "embedding_frechet": frechet_distance(*both, force=reference.protocol.force),
        "paired_cosine": float((normalize(real, dim=1) * normalize(predicted, dim=1)).sum(dim=1).mean()),
    } | {k: v for k, v in recall.items() if k.startswith("text_to_image_recall")}


def draw(decoder: Decoder, embeddings: Tensor, sampling: Sampling, negative: Tensor | None = None) -> list[Image.Image]:
    """Generate one image per row."""
    return [row[0] for row in decoder.decode(embeddings, replace(sampling, n=1), negative)]


def evaluate_generation(
    text: TextToEmbedding, decoder: Decoder, reference: Reference, sampling: Sampling, negative: Tensor | None = None
) -> dict[str, float]:
    """Return embedding_metrics, measure() of images generated from captions and, as ceiling/..., of images generated
    from the true image embeddings."""
    text.check(decoder.contract)
    raw = text.raw(text.model.align("text", reference.pairs.text), decoder.contract)
    drawn = reference.measure(draw(decoder, raw, sampling, negative))
    ceiling = reference.measure(draw(decoder, reference.pairs.image, sampling, negative))
    return embedding_metrics(text, reference) | drawn | {f"ceiling/{k}": ceiling[k] for k in ("fid", "kid", "cmmd")}


def evaluate_run_generation(
    run: Path,
    decoder: str,
    feature_encoder: str,
    protocol: MeasuringProtocol,
    sampling: Sampling,
    store: Store | None = None,
) -> dict[str, float | str]:
    """Run evaluate_generation for a run folder on a split of its store (or of another store).

    Writes metrics and protocol to generation.json in the run folder. Raises InputError if run and decoder do not
    match, and for fewer images than dimensions.
    """
    text = TextToEmbedding.open(run)
    store = store or training_store(run)
    store.require(image=text.model.trained_on("image"), text=text.model.trained_on("text"))
    text.check(read_contract(decoder))
    check_enough(store, protocol)
    opened = open_decoder(decoder)
    reference = Reference(store, open_encoder(feature_encoder, "image"), opened.side, protocol)
    if "text" in text.model.lora or text.model.aligner.reads_states:  # not the features that the store holds
        captions = reference.pairs.captions or ()
        reference.pairs = replace(reference.pairs, text=text.model.features_text(captions))
    found = evaluate_generation(text, opened, reference, sampling, no_picture(opened, text, sampling))
    how = {
        "features": feature_encoder,
        "real_pictures": f"whole on white, {opened.side} px, then as the feature encoder prepares its input",
        "frechet_dims": str(protocol.dims or "all"),
        "decoder": decoder,
    }
    write_json(run / GENERATION, {**how, **found, "steps": sampling.steps, "guidance": sampling.guidance})
    return {**how, **found}


def check_enough(store: Store, protocol: MeasuringProtocol) -> None:
    """Raise InputError if there are too few images for Frechet distances, before generation."""
    counts = store.counts.get(protocol.split, (0, 0))[0]
    n = min(counts, protocol.limit or counts)
    dims = protocol.dims or image_encoder(store).dim
    if n <= dims and not protocol.force:
        raise InputError(
            f"limit: got {n} images, Frechet distances in {dims} dimensions want more than {dims}; raise limit, lower "
            "dims, or set force (the value then depends on the number of images)"
        )
