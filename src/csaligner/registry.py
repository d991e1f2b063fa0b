"""Lazy component registries: names of divergences, encoders, datasets, decoders and adapters.

A new component of the package is one new file and one line here; the contract tests cover all entries. A script adds
components with `register`, an installed package through entry points (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .checks import InputError, nearest
from .signatures import adapt_divergence, adapt_paired_loss


class Registry(Mapping[str, Any]):
    """Components of one kind by name: those of the package, those added with `register`, and those of installed
    packages, entry points of `group`. Names of the package cannot be overridden.

    A value is "module:attribute" or the component itself; `load` imports it. adapt: (name, component) -> the result of
    `load`, called once per component, when it is registered or first loaded; it raises InputError for a component that
    does not follow the protocol.
    """

    def __init__(self, group: str, built_in: Mapping[str, Any], adapt: Callable[[str, Any], Any] | None = None) -> None:
        self.group = group
        self._known: dict[str, Any] = dict(built_in)
        self._from_packages: dict[str, str] | None = None
        self._adapt, self._adapted = adapt, dict[str, Any]()

    def register(self, name: str, thing: Any) -> None:
        """Add a component (or its "module:attribute") for this process.

        Raises InputError if the name exists, or if the component does not follow the protocol of this registry.
        """
        if name in self:
            raise InputError(f"{self.group}: {name!r} already exists; choose another name")
        if not isinstance(thing, str):
            self.adapted(name, thing)
        self._known[name] = thing

    def adapted(self, name: str, thing: Any) -> Any:
        """Return the adapted component `name`."""
        if self._adapt is None:
            return thing
        if name not in self._adapted:
            self._adapted[name] = self._adapt(name, thing)
        return self._adapted[name]

    def __getitem__(self, name: str) -> Any:
        return self._known[name] if name in self._known else self._entry_points()[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entry_points(), **self._known})

    def __len__(self) -> int:
        return len({*self._entry_points(), *self._known})

    def _entry_points(self) -> Mapping[str, str]:
        if self._from_packages is None:
            from importlib.metadata import entry_points

            self._from_packages = {point.name: point.value for point in entry_points(group=self.group)}
        return self._from_packages


# Functions of two samples (N, d) and (M, d): types.Divergence.
DIVERGENCES = Registry(
    "csaligner.divergences",
    {
        "cauchy_schwarz": "csaligner.divergences.cauchy_schwarz:cauchy_schwarz_divergence",
        "mmd": "csaligner.divergences.mmd:mmd",
        "energy": "csaligner.divergences.energy:energy_distance",
        "sinkhorn": "csaligner.divergences.sinkhorn:sinkhorn_divergence",
        "gaussian_kl": "csaligner.divergences.gaussian:gaussian_kl",
        "bures_wasserstein": "csaligner.divergences.gaussian:bures_wasserstein",
        "hoelder": "csaligner.divergences.hoelder:hoelder_divergence",
    },
    adapt_divergence,
)

# Losses of pairs beside InfoNCE: types.PairedLoss.
PAIRED_LOSSES = Registry(
    "csaligner.paired_losses",
    {
        "siglip": "csaligner.losses.siglip:siglip",
        "paired_l2": "csaligner.losses.paired:paired_l2",
        "random_alignment": "csaligner.losses.random_alignment:random_alignment",
    },
    adapt_paired_loss,
)

# Modules made from (adapters.start.Affine, config.AdapterConfig).
ADAPTERS = Registry(
    "csaligner.adapters",
    {
        "identity": "csaligner.adapters.identity:IdentityAdapter",
        "linear": "csaligner.adapters.linear:LinearAdapter",
        "mlp": "csaligner.adapters.mlp:MLPAdapter",
        "class_names": "csaligner.adapters.class_names:ClassNameAdapter",
        "prior": "csaligner.adapters.prior:PriorAdapter",
        "standardise": "csaligner.adapters.standardise:StandardiseAdapter",
        "centre": "csaligner.adapters.standardise:CentreAdapter",
    },
)

# Classes made without arguments: types.Encoder.
ENCODERS = Registry(
    "csaligner.encoders",
    {
        "bundled:efficientnet-lite0": "csaligner.encoders.efficientnet:EfficientNetLite0",
        "bundled:efficientnet-lite0-layout": "csaligner.encoders.efficientnet_layout:EfficientNetLite0Layout",
        "bundled:all-MiniLM-L6-v2": "csaligner.encoders.minilm:MiniLM",
    },
)

# Classes made from a path and options: types.Dataset.
DATASETS = Registry(
    "csaligner.datasets",
    {
        "openmoji": "csaligner.datasets.openmoji:OpenMoji",
        "tuxpaint": "csaligner.datasets.tuxpaint:TuxPaint",
        "openclipart": "csaligner.datasets.openclipart:OpenClipart",
        "table": "csaligner.datasets.table:Table",
        "folder": "csaligner.datasets.folder:Folder",
        "captioned": "csaligner.datasets.captioned:CaptionedFolder",
        "karpathy": "csaligner.datasets.karpathy:Karpathy",
        "coco": "csaligner.datasets.coco:CocoCaptions",
        "flickr": "csaligner.datasets.flickr:FlickrTokens",
        "urban1k": "csaligner.datasets.urban1k:Urban1k",
        "docci": "csaligner.datasets.docci:Docci",
        "sharegpt4v": "csaligner.datasets.sharegpt4v:ShareGPT4V",
        "webdataset": "csaligner.datasets.tars:WebDataset",
        "img2dataset": "csaligner.datasets.img2dataset:Img2Dataset",
        "huggingface": "csaligner.datasets.huggingface:HuggingFace",
        "texts": "csaligner.datasets.texts:Texts",
    },
)

# A pipeline's class as its model_index.json names it -> decoders.kind.Kind.
DECODERS = Registry(
    "csaligner.decoders",
    {
        "KandinskyV22Pipeline": "csaligner.decoders.kandinsky:KIND",
        "UnCLIPImageVariationPipeline": "csaligner.decoders.karlo:KIND",
        "StableUnCLIPImg2ImgPipeline": "csaligner.decoders.stable_unclip:KIND",
        "LayoutPipeline": "csaligner.decoders.layout:KIND",
    },
)


def load(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """Return the component `name` of `table`.

    Raises InputError: an unknown name (with the nearest known one); a thing of another package that is not there, or
    that does not follow the protocol.
    """
    if name not in table:
        raise InputError(f"{kind}: {name!r} is not known; {nearest(name, table)}")
    thing = table[name]
    found = _imported(kind, name, thing) if isinstance(thing, str) else thing
    return table.adapted(name, found) if isinstance(table, Registry) else found


def _imported(kind: str, name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    if module.startswith("csaligner."):
        return getattr(importlib.import_module(module), attribute)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind}: {name!r} refers to {place}, which cannot be imported ({error})") from None
