"""What a pooling or a network costs: parameters and multiply-adds, counted by running it without data."""

import copy
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..pooling import generic_pool

aten = torch.ops.aten

# What the counter sees of an operation; a product that is not named here is one of activations.
_KINDS = {
    aten.convolution: "convolutions",
    aten.mm: "linear",
    aten.addmm: "linear",
    aten.native_batch_norm: "batch_norm",
    aten.native_layer_norm: "layer_norm",
}


@dataclass(frozen=True)
class Costs:
    """Counts for one forward pass.

    A multiply-add is what papers on vision call a FLOP; torch's own counter calls it two.

    Args:
        parameters: numbers that are learned.
        convolutions: multiply-adds in convolutions.
        linear: multiply-adds in products with a matrix, mostly of parameters.
        products: multiply-adds in products of one matrix per image, mostly of activations: attention.
        batch_norm, layer_norm: numbers that come out of such layers. No multiply-adds, but some counters
            add a multiple of them.
    """

    parameters: int
    convolutions: int = 0
    linear: int = 0
    products: int = 0
    batch_norm: int = 0
    layer_norm: int = 0

    @property
    def multiply_adds(self) -> int:
        """Convolutions and matrix products; sums, exponentials and the like count nothing."""
        return self.convolutions + self.linear + self.products

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def count_costs(module: nn.Module, shape: tuple[int, ...], *, by_parts: bool = False) -> Costs:
    """Count a module's parameters and the multiply-adds of one forward pass, in evaluation mode.

    Nothing is computed: a copy of the module runs on torch's meta device, where tensors have a shape and no
    values. A module that was made there (``with torch.device("meta")``) needs no memory either.

    Args:
        module: a pooling or a network.
        shape: of its input, with the batch: ``(1, d, H, W)``, ``(1, N, d)`` or ``(1, 3, h, w)``.
        by_parts: pool as the equations say, ``generic_pool(x, module.spec())``, and not as the package
            does; for a pooling. The package computes the same with fewer products where it can.

    Returns:
        The counts.

    >>> from simpool_lite import create_pool
    >>> pool = create_pool("simpool", 384)
    >>> count_costs(pool, (1, 384, 14, 14)).multiply_adds
    445440
    >>> count_costs(pool, (1, 384, 14, 14), by_parts=True).multiply_adds
    29199360
    """
    module = copy.deepcopy(module).to("meta").eval().requires_grad_(False)
    x = torch.empty(shape, device="meta")
    # The counter looks for an overload first, to know whether to decompose it, then for its operation.
    norms = (aten.native_batch_norm, aten.native_layer_norm)
    norms = dict.fromkeys((*norms, *(norm.default for norm in norms)), _outputs)
    with FlopCounterMode(display=False, custom_mapping=norms) as counter:
        _ = generic_pool(x, module.spec()) if by_parts else module(x)
    counts = dict.fromkeys(("convolutions", "linear", "products", "batch_norm", "layer_norm"), 0)
    for operation, flops in counter.get_flop_counts().get("Global", {}).items():
        kind = _KINDS.get(operation, "products")
        counts[kind] += flops if kind.endswith("norm") else flops // 2
    return Costs(sum(parameter.numel() for parameter in module.parameters()), **counts)


def _outputs(x_shape: tuple[int, ...], *_: object, **__: object) -> int:
    return prod(x_shape)
