"""Heads of one kind as one: their parameters stacked, and the positions met once for all heads on the same features."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..pooling.attend import attend
from ..pooling.attention_pool import AttentionPool, Look


class Stack:
    """S heads that differ in the values of their parameters alone.

    Args:
        heads: of :class:`~simpool_lite.training.probes.Head`, with equal ``kind`` and :func:`can_be_stacked`.

    Attributes:
        parameters: name to a leaf ``(S, ...)``.
        trained: those of them that make a difference, see :func:`shifts`.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        self.heads, self.size = list(heads), len(heads)
        self.pooling = heads[0].pooling
        self.parameters, self.buffers = stack_module_state(self.heads)
        idle = {f"pooling.{name}" for name in shifts(self.pooling)}
        self.trained = [parameter for name, parameter in self.parameters.items() if name not in idle]
        for name in idle:
            self.parameters[name].requires_grad_(False)

    def queries(self, start: object) -> Tensor:
        """Of all heads, ``(B, S M, d)``, or ``(1, S M, d)`` where they do not depend on the image."""
        return self._vmapped("queries", start).transpose(0, 1).flatten(1, 2)

    def finish(self, sums: Tensor, start: object) -> Tensor:
        """What the heads make of their queries' sums, ``(B, S M, d)`` to ``(S, B, out_dim)``."""
        return self._vmapped("finish", start, sums.unflatten(1, (self.size, -1)).transpose(0, 1))

    def _vmapped(self, method: str, start: object, *stacked: Tensor) -> Tensor:
        state = {
            name.removeprefix("pooling."): value
            for name, value in (self.parameters | self.buffers).items()
            if name.startswith("pooling.")
        }

        def one(state: dict[str, Tensor], *own: Tensor) -> Tensor:
            inside = {f"pooling.{name}": value for name, value in state.items()}
            return functional_call(_Method(self.pooling, method), inside, (*own, start))

        if not state:  # nothing to stack, as vmap would have it
            return torch.stack([one({}, *(own[s] for own in stacked)) for s in range(self.size)])
        return torch.vmap(one)(state, *stacked)

    def losses(self, pooled: Tensor, target: Tensor) -> Tensor:
        """The heads' losses of each image ``(S, B)`` in training mode, from what they pooled, ``(S, B, out_dim)``.

        A BatchNorm sees each channel by itself, so that of S heads is one over all their channels.
        """
        z, norm = pooled.transpose(0, 1).flatten(1), self.heads[0].norm
        means, variances = (self.buffers[f"norm.running_{name}"].view(-1) for name in ("mean", "var"))
        z = F.batch_norm(z, means, variances, training=True, momentum=norm.momentum, eps=norm.eps)
        self.buffers["norm.num_batches_tracked"] += 1
        z = z.unflatten(1, (self.size, -1)).transpose(0, 1)
        logits = torch.baddbmm(
            self.parameters["classifier.bias"].unsqueeze(1), z, self.parameters["classifier.weight"].mT
        )
        classes = logits.shape[-1]
        losses = F.cross_entropy(logits.reshape(-1, classes), target.repeat(self.size), reduction="none")
        return losses.view(self.size, -1)

    @torch.no_grad()
    def unstack(self) -> None:
        """Give each head its own parameters and running statistics."""
        trained = self.parameters | {name: x for name, x in self.buffers.items() if name.startswith("norm.")}
        for number, head in enumerate(self.heads):
            own = dict(head.named_parameters()) | dict(head.named_buffers())
            for name, stacked in trained.items():
                own[name].copy_(stacked[number])
            # The statistics of the features are tracked by the first pooling, on behalf of all.
            for mine, first in zip(head.pooling.modules(), self.pooling.modules(), strict=True):
                if isinstance(mine, nn.BatchNorm1d) and mine is not first:
                    mine.load_state_dict(first.state_dict())


class _Method(nn.Module):
    """A method of a pooling as the forward of a module, which is what `functional_call` calls."""

    def __init__(self, pooling: AttentionPool, method: str) -> None:
        super().__init__()
        self.pooling, self.method = pooling, method

    def forward(self, *arguments: object) -> Tensor:
        return getattr(self.pooling, self.method)(*arguments)


def shifts(pooling: nn.Module) -> list[str]:
    """Names of the parameters that add the same to every image's z, like a bias at the end, or nothing.

    The BatchNorm that follows takes it away again: the gradient of such a parameter is what rounding leaves, and Adam
    makes full steps of it, other ones on every machine. They are found by trying, at random values in float64.
    """
    pooling = copy.deepcopy(pooling).to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameters = dict(pooling.named_parameters())
    if not parameters:
        return []
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.02 * noise(*parameter.shape))
    z = pooling(noise(4, 9, pooling.dim))
    gradients = torch.autograd.grad(((z - z.mean(0)) * noise(*z.shape)).sum(), list(parameters.values()))
    sizes = [gradient.abs().max().item() for gradient in gradients]
    return [name for name, size in zip(parameters, sizes, strict=True) if size < 1e-10 * max(sizes)]


def can_be_stacked(head: nn.Module) -> bool:
    """Whether the pooling is one attention, or has nothing to learn, with one vector to classify."""
    pooling = getattr(head, "pooling", None)  # another kind of head has none
    if pooling is None or head.vectors > 1:
        return False
    if isinstance(pooling, AttentionPool):
        return pooling.look is not None
    return not list(pooling.parameters()) + list(pooling.buffers())


def losses_of(stacks: Sequence[Stack], tokens: Tensor, grid: tuple[int, int] | None, target: Tensor) -> list[Tensor]:
    """The losses ``(S, B)`` of each stack on a batch ``(B, N, d)``.

    Poolings that see the same of the images see it computed once, and those that look at the positions in the same way
    look together.
    """
    starts: dict[Callable, object] = {}
    together: dict[Look, list[Stack]] = {}
    pooled: dict[Stack, Tensor] = {}
    for stack in stacks:
        if not isinstance(stack.pooling, AttentionPool):
            pooled[stack] = stack.pooling(tokens, grid=grid).expand(stack.size, -1, -1)
            continue
        if stack.pooling.start not in starts:
            starts[stack.pooling.start] = stack.pooling.start(tokens, tokens.dtype)
        together.setdefault(stack.pooling.look, []).append(stack)
    for look, those in together.items():
        queries = [stack.queries(starts[stack.pooling.start]).expand(len(tokens), -1, -1) for stack in those]
        sums, _, _ = attend(tokens, torch.cat(queries, 1), **look._asdict())
        for stack, own in zip(those, sums.split([q.shape[1] for q in queries], 1), strict=True):
            pooled[stack] = stack.finish(own, starts[stack.pooling.start])
    return [stack.losses(pooled[stack], target) for stack in stacks]
