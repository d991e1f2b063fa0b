"""Implementations of kernel means and contrastive losses: reference, dense, tiled and Triton.

Inputs
    arguments           checks of samples, weights, ids and the logit scale
    bandwidth           the kernel bandwidth and its rules
    kernels             Gaussian, Laplacian, inverse multiquadric and mixture kernels
Selection
    dispatch            table impl -> {log_kernel_mean, info_nce, fused, joint} and the choice of impl="auto"
Implementations
    reference           plain autograd, O(N M) memory; the definition of every value
    dense               whole matrices, closed-form gradients, for up to about a thousand rows
    joint               InfoNCE with D_CS or MMD from whole matrices, gradients computed along with the values
    tiled               log kernel means and gradients in O(N d) memory
    tiled_contrastive   InfoNCE, alone or fused with the kernel mean, in O(N d) memory
    triton_operators    the same operations on a GPU, as operators of torch.library; triton runs them, triton_kernels
                        holds the kernels, block_sums the merging of their sums
    token               D_CS of many small samples (tokens of an image and a caption)
    row_sums            one sum per row (log densities, mean distances) in blocks of rows
Parts of the tiled implementations
    tiles               row blocks, buffers, prepared samples, dtype rules
    contrastive         two modalities centred, sorted by id and divided into tiles
    logsumexp           softmax sums of InfoNCE over tiles: Online (any logits), Shared (small logits)
    kernel_sums         kernel sums over the tiles of InfoNCE: Online (any kernel), Folded (wide Gaussians)
    gaussian_factors    kernel sums and gradients of wide Gaussians, without a running maximum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .arguments import samples, scale_of
    from .bandwidth import resolve_bandwidth
    from .kernels import Gaussian

__all__ = [
    "Gaussian",
    "resolve_bandwidth",
    "samples",
    "scale_of",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "arguments": "samples scale_of",
        "bandwidth": "resolve_bandwidth",
        "kernels": "Gaussian",
    },
)
