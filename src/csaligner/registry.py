"""Names to things, imported on first use: `registry["name"]` is "module:attribute".

A new divergence, encoder, dataset or adapter is one new file and one line here; the contract tests run over
these tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .checks import InputError, nearest

DIVERGENCES: Mapping[str, str] = {
    "cauchy_schwarz": "csaligner.divergences.cauchy_schwarz:cauchy_schwarz_divergence",
    "mmd": "csaligner.divergences.mmd:mmd",
    "energy": "csaligner.divergences.energy:energy_distance",
    "sinkhorn": "csaligner.divergences.sinkhorn:sinkhorn_divergence",
    "gaussian_kl": "csaligner.divergences.gaussian:gaussian_kl",
    "bures_wasserstein": "csaligner.divergences.gaussian:bures_wasserstein",
    "hoelder": "csaligner.divergences.hoelder:hoelder_divergence",
}

# Losses of pairs beside InfoNCE: functions of (x, y, logit scale, ids of x, ids of y).
PAIRED_LOSSES: Mapping[str, str] = {
    "siglip": "csaligner.losses.siglip:siglip",
    "paired_l2": "csaligner.losses.paired:paired_l2",
}

ADAPTERS: Mapping[str, str] = {
    "identity": "csaligner.adapters.identity:IdentityAdapter",
    "linear": "csaligner.adapters.linear:LinearAdapter",
    "mlp": "csaligner.adapters.mlp:MLPAdapter",
    "prior": "csaligner.adapters.prior:PriorAdapter",
    "standardise": "csaligner.adapters.standardise:StandardiseAdapter",
}

ENCODERS: Mapping[str, str] = {
    "bundled:efficientnet-lite0": "csaligner.encoders.efficientnet:EfficientNetLite0",
    "bundled:all-MiniLM-L6-v2": "csaligner.encoders.minilm:MiniLM",
}

DATASETS: Mapping[str, str] = {
    "openmoji": "csaligner.data.datasets.openmoji:OpenMoji",
    "tuxpaint": "csaligner.data.datasets.tuxpaint:TuxPaint",
    "openclipart": "csaligner.data.datasets.openclipart:OpenClipart",
    "table": "csaligner.data.datasets.table:Table",
    "folder": "csaligner.data.datasets.folder:Folder",
    "karpathy": "csaligner.data.datasets.karpathy:Karpathy",
    "coco": "csaligner.data.datasets.coco:CocoCaptions",
    "flickr": "csaligner.data.datasets.flickr:FlickrTokens",
    "urban1k": "csaligner.data.datasets.urban1k:Urban1k",
    "docci": "csaligner.data.datasets.docci:Docci",
    "sharegpt4v": "csaligner.data.datasets.sharegpt4v:ShareGPT4V",
    "webdataset": "csaligner.data.datasets.tars:WebDataset",
    "img2dataset": "csaligner.data.datasets.img2dataset:Img2Dataset",
    "huggingface": "csaligner.data.datasets.huggingface:HuggingFace",
    "texts": "csaligner.data.datasets.texts:Texts",
}


def load(kind: str, table: Mapping[str, str], name: str) -> Any:
    """The object that `name` stands for in `table`; an unknown name is an error with the nearest known one."""
    if name not in table:
        raise InputError(f"{kind}: {name!r} is not known; {nearest(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
