r"""The generic framework of the paper's section 3.1, equations 1-7, as code.

The paper writes an image as a matrix X with one column per patch, ``d x p``, and the pooled vectors as U,
``d x k``. Tensors here have the batch first and one *row* per vector, so each is the transpose of the paper's
matrix, and the weighted sum Z = V A is written ``A @ V``:

====== ============================ ==================
symbol what it is                   tensor
====== ============================ ==================
X      the positions (patches)      ``(B, p, d)``
U      the pooled vectors           ``(B, k, d)``
Q      queries, phi_Q(U)            ``(B, k, d)``
K, V   keys phi_K(X), values phi_V  ``(B, p, d)``
S, A   similarities, attention      ``(B, m, k, p)``
Z      weighted means of V          ``(B, k, d)``
====== ============================ ==================

m is the number of heads; s, h and f work on one head's slice of the channels, d' = d / m wide.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_int

Reduce = Literal["max", "mean", "concat"]


def generic_pool(
    x: Tensor, spec: "Spec", grid: tuple[int, int] | None = None, return_attention: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Pool by the parts of a :class:`Spec`: equations 1-7 of the paper, to be read and not to be fast.

    ::

        U^0 given;  X^0 = X
        for t in 0..T-1:
            Q = phi_Q(U^t)     K = phi_K(X^t)     S_ij = s(k_i, q_j)
            A = h(S)           V = phi_V(X^t)     Z = f^-1( f(V) A )
            X^{t+1} = phi_X(X^t)                  U^{t+1} = phi_U(Z)

    Args:
        x: tokens ``(B, N, d)`` or maps ``(B, d, H, W)``.
        spec: the parts.
        grid: ``(H, W)`` of token input, for parts that see where a position is.
        return_attention: also return A.

    Returns:
        z ``(B, out_dim)``; with ``return_attention`` the pair (z, A) of the last iteration, A as the method
        defines it (not scaled to sum one), ``(B, M, N)`` or ``(B, M, H, W)``, M = k * m, vectors outermost.

    Raises:
        ValueError: ``x`` is neither tokens nor maps.

    Source: Psomas et al., "Keep It SimPool", ICCV 2023, equations 1-7.

    >>> spec = Spec(attention=softmax(), similarity=dot)  # attention from the average, nothing learned
    >>> generic_pool(torch.tensor([[[1.0], [3.0]]]), spec)
    tensor([[2.9640]])
    """
    if x.ndim not in (3, 4):
        raise ValueError(f"x: expected tokens (B, N, d) or maps (B, d, H, W), got shape {tuple(x.shape)}")
    if x.ndim == 4:
        grid = tuple(x.shape[2:])
    X = x.flatten(2).mT if x.ndim == 4 else x

    U = spec.init(X)
    for t in range(spec.T):
        Q = spec.phi_q(U, t=t)
        K = spec.phi_k(X, U=U, grid=grid, t=t)
        S = spec.similarity(split_heads(K, spec.heads), split_heads(Q, spec.heads))
        A = spec.attention(S, X=X, grid=grid, t=t)
        V = split_heads(spec.phi_v(X, U=U, Q=Q, grid=grid, t=t), spec.heads)
        Z = merge_heads(spec.f_inverse(A @ spec.f(V), V=V, A=A))
        X, U = spec.phi_x(X, U=U, t=t), spec.phi_u(Z, U=U, A=A, t=t)
    z = spec.post(reduce_vectors(U, spec.reduce))

    if not return_attention:
        return z
    # The keys may begin with U itself (a class token attends to itself too): the map is over positions.
    maps = A[..., -X.shape[1] :].transpose(1, 2).flatten(1, 2)
    return z, maps.unflatten(-1, grid) if x.ndim == 4 else maps


@dataclass(frozen=True)
class Part:
    """A function of the framework with the formula that the paper prints for it.

    What a function sees beyond its own argument it asks for by a parameter's name, out of those the
    framework offers at that place (see :class:`Spec`): ``lambda X, Q: Q * X`` as phi_V sees the queries too.

    Args:
        formula: LaTeX, as in a cell of the paper's Table 1.
        function: the part itself.

    >>> gated = Part(r"\\mathrm{diag}(q) X", lambda X, Q: Q * X)
    >>> gated(torch.ones(2), Q=torch.zeros(2), t=0)
    tensor([0., 0.])
    """

    formula: str
    function: Callable[..., Tensor]

    def __call__(self, *own: Tensor, **offered: Any) -> Tensor:
        asked = _parameters(self.function)[len(own) :]
        return self.function(*own, **{name: offered[name] for name in asked if name in offered})


def part(formula: str) -> Callable[[Callable[..., Tensor]], Part]:
    """Decorator: make a function a :class:`Part`."""
    return lambda function: Part(formula, function)


def _parameters(function: Callable) -> list[str]:
    if isinstance(function, Part):
        function = function.function
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # torch.exp and its like do not say
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


# Similarities s(K, Q): keys (..., p, d') and queries (..., k, d') to S (..., k, p).


@part(r"K^\top Q")
def dot(K: Tensor, Q: Tensor) -> Tensor:
    return Q @ K.mT


@part(r"-\|k_i - q_j\|^2")
def negative_distance(K: Tensor, Q: Tensor) -> Tensor:
    return -(Q.unsqueeze(-2) - K.unsqueeze(-3)).square().sum(-1)


@part(r"\cos(k_i, q_j)")
def cosine(K: Tensor, Q: Tensor) -> Tensor:
    return F.normalize(Q, dim=-1) @ F.normalize(K, dim=-1).mT


@part("")
def no_similarity(K: Tensor, Q: Tensor) -> Tensor:
    return Q.new_zeros(*Q.shape[:-1], K.shape[-2])


# Attention functions h(S): S (B, m, k, p) to A of the same shape. In the paper's matrices a column is one
# pooled vector's weights over the positions, here a row: its softmax over columns sigma_2 is softmax(-1).


def l1_normalize(A: Tensor, dim: int) -> Tensor:
    """A with sums of one along ``dim``, for A >= 0; what is all zero stays zero."""
    return A / A.sum(dim, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)


@part("1/p")
def uniform(S: Tensor) -> Tensor:
    return torch.full_like(S, 1 / S.shape[-1])


@part("1")
def ones(S: Tensor) -> Tensor:
    return torch.ones_like(S)


def softmax(scale: float = 1.0) -> Part:
    """Over the positions, as SimPool and transformers do; ``scale`` is the paper's 1 / sqrt d."""
    return Part(r"\sigma_2(S / \sqrt{d})", lambda S: (S * scale).softmax(-1))


def softmax_over_vectors(scale: float = 1.0, eps: float = 0.0) -> Part:
    """Over the other axis, the pooled vectors, then l1 over the positions, as Slot Attention does.

    With one vector the weights are uniform. ``eps`` is added in between (Slot's code: 1e-8).
    """
    return Part(r"\eta_2(\sigma_1(S / \sqrt{d}))", lambda S: l1_normalize((S * scale).softmax(-2) + eps, dim=-1))


@part(r"\eta_2(\arg\max_1(S))")
def hard_assignment(S: Tensor) -> Tensor:
    numbers = torch.arange(S.shape[-2], device=S.device).unsqueeze(-1)
    nearest = (S.argmax(-2, keepdim=True) == numbers).to(S.dtype)
    return l1_normalize(nearest.masked_fill(S.isnan(), math.nan), dim=-1)  # nothing is nearest to NaN


def sinkhorn(eps: float, iterations: int) -> Part:
    """Entropic optimal transport between positions and vectors, each side with uniform mass.

    One iteration gives each position the same mass, then each vector: in logarithms, a softmax over one axis
    and then over the other. Weights of a vector sum to one (the transport plan times k).
    """

    def function(S: Tensor) -> Tensor:
        log_plan = S / eps
        for _ in range(iterations):
            log_plan = log_plan.log_softmax(-2).log_softmax(-1)
        return log_plan.exp()

    return Part(r"\mathrm{Sinkhorn}(e^{S / \epsilon})", function)


def sparsemax(scale: float = 1.0) -> Part:
    """The distribution over the positions nearest to the logits: few positions, the others exactly zero.

    Source: Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016, Algorithm 1.
    """

    def function(S: Tensor) -> Tensor:
        S = S * scale
        ordered = S.sort(-1, descending=True).values
        sums = ordered.cumsum(-1)
        rank = torch.arange(1, S.shape[-1] + 1, device=S.device, dtype=S.dtype)
        support = (1 + rank * ordered > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, (support - 1).clamp_min(0)) - 1) / support  # without support all is NaN
        return (S - threshold).clamp_min(0)

    return Part(r"\mathrm{sparsemax}(S / \sqrt{d})", function)


def sigmoid(scale: float = 1.0) -> Part:
    """Every position for itself, from 0 to 1 / p; CBAM's too, with the scale 1."""
    return Part(r"\sigma(S) / p", lambda S: (S * scale).sigmoid() / S.shape[-1])


@part(r"\mathrm{diag}(X^\top X)")
def energy(S: Tensor, X: Tensor) -> Tensor:
    return X.square().sum(-1)[:, None, None, :].expand_as(S)


# The means f_alpha.

LARGEST_PLAIN = 5  # exponents up to this are taken of the values as they are: 1e-6 and 1e6 stay within float32


def power_mean(V: Tensor, A: Tensor, exponent: float | Tensor) -> Tensor:
    """( sum_i a_i v_i^exponent )^(1/exponent), of V ``(B, m, p, d')`` and A ``(B, m, k, p)``; ``(B, m, k, d')``.

    Also of V ``(p, d')`` and A ``(p,)``, which gives ``(d',)``.

    Powers are those of v_i divided by the largest one that has a weight (the smallest for a negative exponent), so
    that they lie in [0, 1] with a 1 among them, and neither overflow nor vanish together.
    """
    one_vector = A.ndim == 1
    V, A = V.unsqueeze(-3), A.unsqueeze(-1)
    unseen = A == 0
    with torch.no_grad():  # the mean is the same whatever it is divided by
        largest, smallest = V.masked_fill(unseen, 0).amax(-2), V.masked_fill(unseen, math.inf).amin(-2)
        if isinstance(exponent, Tensor):
            unit = torch.where(exponent > 0, largest, smallest)
        else:
            unit = largest if exponent > 0 else smallest
        unit = unit.clamp_min(torch.finfo(V.dtype).tiny)
    ratios = (V / unit.unsqueeze(-2)).masked_fill(unseen, 1)
    mean = unit * (A * ratios.pow(exponent)).sum(-2).pow(1 / exponent)
    return mean[0] if one_vector else mean


def f_alpha(alpha: float | Tensor) -> tuple[Part, Part]:
    r"""The pair (f, f^-1) of the paper's generalised mean: Z = f^-1( f(V) A ).

    f_alpha(x) = x^((1 - alpha) / 2), and ln x for alpha = 1, for x >= 0. At alpha = -inf, -3, -1, 1, 3, inf
    that is the maximum, the quadratic, arithmetic, geometric and harmonic mean and the minimum. The exponent
    (1 - alpha) / 2 is called gamma; alpha = 1 - 2 gamma.

    Args:
        alpha: a number, or a tensor with one element when it is learned.

    Source: Amari, "Integration of stochastic models by minimizing alpha-divergence", 2007; the paper's
    section 3.1. Inside the framework exponents above 5, below -5 and learned ones go through :func:`power_mean`.

    >>> f, f_inverse = f_alpha(3)
    >>> f_inverse(f(torch.tensor([1.0, 3.0])).mean())  # the harmonic mean
    tensor(1.5000)
    """
    if isinstance(alpha, Tensor):
        exponent, name = (1 - alpha) / 2, r"f_\alpha"
    elif math.isinf(alpha):
        # The limits are no f: they look at the values themselves, where the weights are not zero.
        smallest = alpha > 0
        name = rf"f_{{{'+' if smallest else '-'}\infty}}"
        return Part(name, lambda V: V), Part(f"{name}^{{-1}}", _minimum if smallest else _maximum)
    elif alpha == 1:
        return Part(r"f_{1}", torch.log), Part(r"f_{1}^{-1}", torch.exp)
    else:
        exponent, name = (1 - alpha) / 2, rf"f_{{{alpha:g}}}"

    def f_inverse(Z: Tensor, V: Tensor | None = None, A: Tensor | None = None) -> Tensor:
        plain = V is None or (not isinstance(exponent, Tensor) and abs(exponent) <= LARGEST_PLAIN)
        return Z.pow(1 / exponent) if plain else power_mean(V, A, exponent)

    return Part(name, lambda V: V.pow(exponent)), Part(f"{name}^{{-1}}", f_inverse)


def _maximum(Z: Tensor, V: Tensor, A: Tensor) -> Tensor:
    return V.unsqueeze(-3).masked_fill(A.unsqueeze(-1) == 0, -math.inf).amax(-2)


def _minimum(Z: Tensor, V: Tensor, A: Tensor) -> Tensor:
    return -_maximum(Z, -V, A)


# The remaining parts: U^0, the identity, and what is around the loop.


def gap(X: Tensor) -> Tensor:
    """The average of the positions, one vector ``(B, 1, d)``."""
    return X.mean(1, keepdim=True)


def same(x: Tensor) -> Tensor:
    """The identity."""
    return x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """g_m: rows ``(B, n, d)`` to ``(B, m, n, d / m)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """g_m^-1: ``(B, m, n, d / m)`` to ``(B, n, d)``."""
    return x.transpose(1, 2).flatten(2)


def reduce_vectors(U: Tensor, how: Reduce) -> Tensor:
    """k vectors ``(B, k, d)`` to one: ``(B, d)``, or ``(B, k * d)`` for "concat"."""
    if how == "concat":
        return U.flatten(1)
    return U.amax(1) if how == "max" else U.mean(1)


@dataclass(frozen=True, kw_only=True)
class Spec:
    r"""The parts of a pooling, in the paper's terms; a variant is ``dataclasses.replace(spec, T=3)``.

    Parts are :class:`Part`, or any function or module, which then is its own name. The defaults are those of
    average pooling, each with the formula that the paper's Table 1 prints there (most cells are empty).
    A part gets its own argument first. After the semicolon is what it may ask for besides, by the names of
    its parameters; t is the number of the iteration, grid is (H, W) or None.

    Args:
        k: number of pooled vectors, for the table; the tensors have as many as ``init`` gives.
        T: number of iterations.
        init: U^0 ``(B, k, d)`` of (X).
        phi_q: Q ``(B, k, d)`` of (U; t).
        phi_k: K ``(B, p, d)`` of (X; U, grid, t). A class token that attends to itself too gives p + 1 rows, its
            own first, here and in ``phi_v``.
        similarity: S ``(B, m, k, p)`` of (K, Q), which are ``(B, m, p, d')`` and ``(B, m, k, d')``.
        attention: A ``(B, m, k, p)``, h in the equations, of (S; X, grid, t).
        phi_v: V ``(B, p, d)`` of (X; U, Q, grid, t).
        f: elementwise, of (V), which is ``(B, m, p, d')``.
        f_inverse: its inverse, elementwise, of (Z; V, A): limits such as the maximum look at the values.
        phi_x: the next X ``(B, p, d)`` of (X; U, t).
        phi_u: the next U ``(B, k, d)`` of (Z; U, A, t).
        heads: m, slices of the channels with a map of their own.
        reduce: from k vectors to the output: "max", "mean" or "concat".
        post: what follows, on ``(B, out_dim)``.

    Raises:
        ValueError: ``k``, ``T`` or ``heads`` is below 1, or ``reduce`` is unknown.
        TypeError: a part is not callable.

    >>> from dataclasses import replace
    >>> max_pooling = replace(Spec(), attention=ones, f_inverse=f_alpha(-math.inf)[1])
    >>> generic_pool(torch.tensor([[[1.0], [3.0]]]), max_pooling)
    tensor([[3.]])
    """

    k: int = 1
    T: int = 1
    init: Callable = Part("", gap)
    phi_q: Callable = Part("", same)
    phi_k: Callable = Part("", same)
    similarity: Callable = no_similarity
    attention: Callable = uniform
    phi_v: Callable = Part("X", same)
    f: Callable = f_alpha(-1)[0]
    f_inverse: Callable = f_alpha(-1)[1]
    phi_x: Callable = Part("", same)
    phi_u: Callable = Part("Z", same)
    heads: int = 1
    reduce: Reduce = "max"
    post: Callable = Part("", same)

    def __post_init__(self) -> None:
        for name in ("k", "T", "heads"):
            object.__setattr__(self, name, check_int(name, getattr(self, name)))
        check_choice("reduce", self.reduce, get_args(Reduce))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is Callable and not isinstance(value, Part):
                if not callable(value):
                    raise TypeError(f"{field.name}: expected a function, got {type(value).__name__}")
                name = getattr(value, "__name__", type(value).__name__)
                object.__setattr__(self, field.name, Part(rf"\mathrm{{{name}}}", value))

    def formulas(self) -> dict[str, str]:
        """The spec as a row of the paper's Table 1: field to LaTeX, empty where the part is not used.

        >>> Spec().formulas()["attention"]
        '1/p'
        """
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value.formula if isinstance(value, Part) else str(value) for name, value in values}
