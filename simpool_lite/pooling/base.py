"""What every pooling shares: reading tokens or maps, the attention map, the registry."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checks import check_bool, check_choice, check_int, did_you_mean
from .framework import Spec, generic_pool

_POOLS: dict[str, type["Pool"]] = {}
_UNLISTED: set[str] = set()  # variants of a method, which are not methods of their own

Family = Literal["landscape", "probing"]


class Pool(nn.Module):
    """Summarises the positions of an image: tokens ``(B, N, d)`` or maps ``(B, d, H, W)`` to ``(B, out_dim)``.

    A method is a subclass that says its parts in :meth:`spec` and, to be efficient, defines
    :meth:`pool_tokens`. Calling the module accepts both layouts; the same content gives the same output in
    either.

    NaN among an image's features is NaN in its z: in its own channel where each channel is pooled by itself (GAP,
    max, GAP+max, GeM, LSE), in all channels elsewhere. Infinite values follow arithmetic: the maximum of 1 and -inf
    is 1. No image sees another one's values, except through SimPool's ``shift="batch"``.

    Args:
        dim: number of channels, d.

    Attributes:
        family: "landscape", the methods that the paper compares, or "probing", heads for frozen features.
        group: the method's group in the paper's Table 1, 1 to 5; None for what is not there.
        dim: number of channels that come in.
        out_dim: number of channels that go out.
        needs_grid: whether tokens need their ``grid``, as the method sees where each position is.
    """

    family: Family = "landscape"
    group: int | None = None
    needs_grid = False
    any_dtype = False  # pool_tokens takes tokens as they come and does without a copy of them in float32

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.out_dim = check_int("dim", dim)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """Pool ``(B, N, d)`` tokens to z ``(B, out_dim)`` and raw weights ``(B, M, N)``.

        Tokens are float32 or float64, or of any dtype where ``any_dtype`` says so. The weights are None for a method
        that weighs no positions. ``grid`` is ``(H, W)`` when known.
        A subclass that has only a spec is pooled by the framework.
        """
        return generic_pool(tokens, self.spec(), grid, return_attention=True)

    def spec(self) -> Spec:
        """The method's parts: ``generic_pool(x, pool.spec())`` equals ``pool(x)``.

        The parts use the pool's own parameters as they are at the time of a call.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, grid: tuple[int, int] | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Pool the positions of each image.

        Args:
            x: tokens ``(B, N, d)`` or maps ``(B, d, H, W)``, floating point.
            grid: ``(H, W)`` of token input, for methods that see where a position is.
            return_attention: also return the map.

        Returns:
            z ``(B, out_dim)``; with ``return_attention`` the pair (z, a), where a is ``(B, M, N)`` for
            tokens and ``(B, M, H, W)`` for maps, not negative, each map with sum one, or None for a
            method that weighs no positions. Both have the dtype of ``x``.

        Raises:
            TypeError: ``x`` is not a dense floating-point tensor of 16 bits or more.
            ValueError: ``x`` has another number of dimensions or channels, no positions, or does not
                fit ``grid``; ``grid`` is missing for tokens and the method needs it.
        """
        tokens, grid = self._read(x, grid)
        if not torch.compiler.is_compiling():
            check_bool("return_attention", return_attention)
        dtype = accumulation_dtype(x.dtype)
        own = {name: tensor for name, tensor in self._tensors() if tensor.is_floating_point()}
        if any(tensor.dtype != dtype for tensor in own.values()):  # this method again, with all of them in that dtype
            cast = {name: tensor.to(dtype) for name, tensor in own.items()}
            return functional_call(self, cast, (x, grid, return_attention))
        with _autocast_off(x.device.type):
            # A pooling is one reduction over many positions: half precision would lose the sum
            # (and overflow in a power), so statistics and sums are float32 at least.
            z, weights = self.pool_tokens(tokens if self.any_dtype else tokens.to(dtype), grid)
        if not return_attention:
            return z.to(x.dtype)
        if weights is None:
            return z.to(x.dtype), None
        # Where all weights are zero (an empty cluster, an image of zeros) the map is uniform.
        weights = weights + (weights.sum(-1, keepdim=True) == 0)
        attention = weights / weights.sum(-1, keepdim=True)
        if x.ndim == 4:
            attention = attention.unflatten(-1, grid)
        return z.to(x.dtype), attention.to(x.dtype)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()
        yield from self.named_buffers()

    def _read(self, x: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int] | None]:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype.itemsize < 2:
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a floating-point tensor of 16 bits or more, got {came}")
        if x.layout != torch.strided or x.is_nested:
            raise TypeError(f"x: expected a dense tensor, got {'a nested one' if x.is_nested else x.layout}")
        if x.ndim not in (3, 4):
            raise ValueError(f"x: expected tokens (B, N, d) or maps (B, d, H, W), got shape {tuple(x.shape)}")
        if grid is not None and not torch.compiler.is_compiling():  # where sizes are symbols
            grid = _check_grid(grid)
        axis = 2 if x.ndim == 3 else 1
        if x.shape[axis] != self.dim:
            raise ValueError(
                f"x: expected {self.dim} channels on axis {axis} "
                f"({'tokens (B, N, d)' if x.ndim == 3 else 'maps (B, d, H, W)'}), got shape {tuple(x.shape)}"
            )
        if x.ndim == 4:
            if grid is not None and tuple(grid) != tuple(x.shape[2:]):
                raise ValueError(f"grid: expected {tuple(x.shape[2:])}, the map's own, got {tuple(grid)}")
            grid, x = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)
        elif grid is not None and grid[0] * grid[1] != x.shape[1]:
            raise ValueError(f"grid: expected H * W = {x.shape[1]}, the number of tokens, got {tuple(grid)}")
        if x.shape[1] == 0:
            raise ValueError(f"x: expected at least one position, got shape {tuple(x.shape)}")
        if grid is None and self.needs_grid:
            raise ValueError(
                f"grid: expected (H, W) of the {x.shape[1]} tokens, as {type(self).__name__} sees where they are, "
                "got None"
            )
        return x, grid


def _check_grid(grid: tuple[int, int]) -> tuple[int, int]:
    pair = tuple(grid) if isinstance(grid, Iterable) and not isinstance(grid, str) else ()
    if len(pair) != 2:
        raise ValueError(f"grid: expected two ints (H, W), got {grid!r}")
    return check_int("grid", pair[0]), check_int("grid", pair[1])


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a pooling computes: float32, or float64 for float64 input."""
    return torch.promote_types(dtype, torch.float32)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, N, d)`` to ``(B, d, H, W)``."""
    return tokens.mT.unflatten(2, grid)


def to_tokens(maps: Tensor) -> Tensor:
    """``(B, d, H, W)`` to ``(B, N, d)``."""
    return maps.flatten(2).mT


def check_heads(dim: int, num_heads: int) -> int:
    if dim % check_int("num_heads", num_heads):
        raise ValueError(f"num_heads: expected an int of at least 1 that divides dim = {dim}, got {num_heads!r}")
    return int(num_heads)


def _autocast_off(device_type: str) -> AbstractContextManager:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def register_pool(name: str, *, listed: bool = True) -> Callable[[type[Pool]], type[Pool]]:
    """Class decorator: make a :class:`Pool` known to :func:`create_pool` as ``name``.

    One that is not ``listed`` is not among :func:`list_pools`: a variant for an ablation.
    """

    def register(cls: type[Pool]) -> type[Pool]:
        _POOLS[name] = cls
        if not listed:
            _UNLISTED.add(name)
        return cls

    return register


def list_pools(family: Family = "landscape") -> list[str]:
    """Names of the poolings of one family; :func:`create_pool` makes those of any.

    Args:
        family: "landscape", the methods that the paper compares, in the order of its Table 1, or "probing", the
            attentive heads for frozen features of Psomas et al., "Attention, Please!", 2026, in alphabetical order.

    Raises:
        ValueError: there is no such family.

    >>> from simpool_lite import list_pools
    >>> "simpool" in list_pools(), "ep" in list_pools(), "ep" in list_pools(family="probing")
    (True, False, True)
    """
    check_choice("family", family, get_args(Family))
    names = [name for name, pool in _POOLS.items() if name not in _UNLISTED and pool.family == family]
    return sorted(names) if family == "probing" else names


def create_pool(name: str, dim: int, **kwargs) -> Pool:
    """Make a pooling by its name.

    Args:
        name: one of :func:`list_pools`, of any family.
        dim: number of channels, d.
        **kwargs: the method's own arguments, see its class.

    Raises:
        ValueError: the name is unknown, or an argument has a value the method does not accept.
        TypeError: the method has no argument of that name, or a switch is not a bool.

    >>> import torch
    >>> create_pool("gap", 8)(torch.ones(2, 8, 5, 5)).shape
    torch.Size([2, 8])
    """
    check_pool("name", name)
    accepted = _arguments(name)
    for key in kwargs:
        if key not in accepted:
            expected = f"one of {', '.join(accepted)}" if accepted else "no further arguments"
            ablation = next((f"; {other!r} has it" for other in _UNLISTED if key in _arguments(other)), "")
            hint = did_you_mean(key, accepted) or ablation
            raise TypeError(
                f"{key}: pool {name!r} does not have this argument; expected {expected}, "
                f"got {key}={kwargs[key]!r}{hint}"
            )
        if accepted[key].annotation is bool:
            check_bool(key, kwargs[key])
    return _POOLS[name](dim, **kwargs)


def check_pool(argument: str, name: str, *others: str) -> None:
    """Raise for what is neither a pooling's name nor one of the others; ``argument`` is what the caller has it from."""
    if not isinstance(name, str) or name not in {*_POOLS, *others}:
        check_choice(argument, name, [*(listed for listed in _POOLS if listed not in _UNLISTED), *others])


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a pool beside ``dim``."""
    arguments = inspect.signature(_POOLS[name]).parameters
    return {argument: arguments[argument] for argument in arguments if argument != "dim"}
