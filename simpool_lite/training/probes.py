"""Train poolings on frozen features: many heads at once, each batch of features read once for all of them.

A head is a pooling, a BatchNorm without affine parameters and a linear classifier, as in attentive probing (Psomas et
al., "Attention, Please! Revisiting Attentive Probing", 2025).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from ..checks import check_int
from ..files import write_atomically
from ..pooling import create_pool
from .features import Features
from .features import cached_features as cached_features
from .stacked import Stack, can_be_stacked, losses_of

RATES = (1e-3, 3e-3, 1e-2)


class Head(nn.Module):
    """A pooling and a classifier: features ``(B, N, d)`` to logits ``(B, num_classes)``.

    Args:
        pool: a name for :func:`~simpool_lite.create_pool`.
        dim: d.
        num_classes: of the classifier.
        max_logits: of a pooling into k vectors, classify each and take the largest logit of each class; otherwise they
            are concatenated.
        **pool_kwargs: arguments of the pooling.

    Attributes:
        kind: the same for heads that differ in the values of their parameters alone.

    >>> Head("simpool", 64, 10)(torch.randn(2, 16, 64), grid=(4, 4))[0].shape
    torch.Size([2, 10])
    """

    def __init__(self, pool: str, dim: int, num_classes: int, *, max_logits: bool = False, **pool_kwargs) -> None:
        super().__init__()
        self.kind = repr((pool, dim, num_classes, max_logits, sorted(pool_kwargs.items())))
        self.pooling = create_pool(pool, dim, **pool_kwargs)
        self.vectors = self.pooling.out_dim // dim if max_logits else 1
        width = self.pooling.out_dim // self.vectors
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """Logits and the pooling's map ``(B, M, N)`` or None."""
        pooled, attention = self.pooling(features, grid=grid, return_attention=True)
        logits = self.classifier(self.norm(pooled.reshape(len(features) * self.vectors, -1)))
        return logits.reshape(len(features), self.vectors, -1).amax(1), attention


def probe(
    train: Features | tuple[Tensor, Tensor],
    val: Features | tuple[Tensor, Tensor],
    test: Features | tuple[Tensor, Tensor],
    variants: dict[str, dict],
    **how: object,
) -> pd.DataFrame:
    """Train poolings on frozen features: each variant's rate chosen on ``val``, all heads in the same passes.

    Args:
        train, val, test: of :func:`cached_features`, or pairs of features ``(n, N, d)`` and labels ``(n,)``.
        variants: name to ``pool`` and the pooling's own arguments: ``{"SimPool": {"pool": "simpool", "gamma": 2.0}}``.
        **how: ``seeds``, ``rates``, ``epochs``, ``batch_size``, ``weight_decay``, ``bootstrap``, ``after_epoch`` and
            ``progress`` of :func:`fit_heads`.

    Returns:
        One row per variant and seed: ``variant seed top1 loss learning_rate parameters seconds status``; ``top1`` in
        percent on ``test``, ``seconds`` the head's share of the training, ``status`` "ok", or "failed" where the loss
        is not finite.

    Raises:
        ValueError: features and labels of different lengths; a pooling that needs a grid and features without; see
            :func:`~simpool_lite.create_pool`.

    >>> x, y = torch.randn(64, 16, 8), torch.arange(64) % 2
    >>> runs = probe((x, y), (x, y), (x, y), {"GAP": {"pool": "gap"}}, seeds=2, epochs=1, progress=False)
    >>> runs[["variant", "seed", "parameters"]].values.tolist()
    [['GAP', 0, 18], ['GAP', 1, 18]]
    """
    parts = (train, val, test) = [_features(*part) for part in (("train", train), ("val", val), ("test", test))]
    classes = 1 + int(max(part.labels.max() for part in parts))
    rows = []
    for fitted in fit_heads(train, val, variants, classes, **how):
        correct, loss, _ = measure_head(fitted.head, test.tokens, test.labels, test.grid)
        top1 = 100 * correct.float().mean().item() if fitted.finite else math.nan
        row = {"variant": fitted.variant, "seed": fitted.seed, "top1": top1, "loss": loss}
        row |= {"learning_rate": fitted.learning_rate, "parameters": sum(p.numel() for p in fitted.head.parameters())}
        rows.append(row | {"seconds": fitted.seconds, "status": "ok" if fitted.finite else "failed"})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Fitted:
    """A trained head of :func:`fit_heads`; ``seconds`` is its share of the training, ``finite`` says of its loss."""

    variant: str
    seed: int
    learning_rate: float
    head: Head
    seconds: float
    finite: bool


def fit_heads(
    train: Features,
    val: Features,
    variants: dict[str, dict],
    classes: int,
    *,
    seeds: int = 5,
    rates: Sequence[float] = RATES,
    epochs: int = 6,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    bootstrap: bool = False,
    after_epoch: Callable[[pd.DataFrame], object] | None = None,
    progress: bool = True,
) -> list[Fitted]:
    """The trained heads behind :func:`probe`: per variant one per seed, each at its variant's best rate.

    Args:
        train, val: what they are trained on, and what the rates are chosen on.
        variants: as in :func:`probe`.
        classes: how many there are.
        seeds: of the initialisation, 0, 1, 2, ...; all share one order of the images.
        rates: learning rates to choose from, by the accuracy on ``val`` of one head each, whose seed is not reported.
        epochs: passes over the training features.
        batch_size: features per step.
        weight_decay: of AdamW.
        bootstrap: each seed counts each training image as often as a draw with replacement has it, the same for all
            variants, so that the spread over seeds holds that of the training images, too.
        after_epoch: called after each pass of the heads that are reported, with one row per head: ``variant seed
            learning_rate epoch top1``, the last in percent on ``val``.
        progress: show a bar over the epochs.

    Raises:
        ValueError: as in :func:`probe`.
    """
    check_int("seeds", seeds, 1)
    how = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay, "seed": 0, "progress": progress}

    def trained(
        wanted: list[tuple[str, int, float]],
        weights: Tensor | None = None,
        after_epoch: Callable[[pd.DataFrame], object] | None = None,
    ) -> tuple[list[Head], list[list[float]], float]:
        heads, started = [], time.perf_counter()
        for name, seed, _ in wanted:
            torch.manual_seed(seed)
            heads.append(
                Head(dim=train.tokens.shape[-1], num_classes=classes, **variants[name]).to(train.tokens.device)
            )
        rates = [rate for *_, rate in wanted]

        def report(curves: list[list[float]]) -> None:
            rows = pd.DataFrame(wanted, columns=["variant", "seed", "learning_rate"])
            after_epoch(rows.assign(epoch=len(curves[0]), top1=[accuracy(head, val) for head in heads]))

        watch = None if after_epoch is None else report
        curves = train_heads(
            heads, rates, train.tokens, train.labels, train.grid, weights=weights, after_epoch=watch, **how
        )
        return heads, curves, (time.perf_counter() - started) / len(heads)

    with torch.random.fork_rng():
        tried = [(name, seeds, rate) for name in variants for rate in rates] if len(rates) > 1 else []
        best = dict.fromkeys(variants, (-1.0, rates[0]))
        for (name, _, rate), head in zip(tried, trained(tried)[0] if tried else [], strict=True):
            best[name] = max(best[name], (accuracy(head, val), rate), key=lambda found: found[0])
        wanted = [(name, seed, best[name][1]) for name in variants for seed in range(seeds)]
        weights = None
        if bootstrap:
            of_seed = [_drawn(len(train), seed).to(train.labels.device) for seed in range(seeds)]
            weights = torch.stack([of_seed[seed] for _, seed, _ in wanted])
        heads, curves, seconds = trained(wanted, weights, after_epoch)
    return [
        Fitted(*one, head, seconds, math.isfinite(sum(curve)))
        for one, head, curve in zip(wanted, heads, curves, strict=True)
    ]


def _drawn(images: int, seed: int) -> Tensor:
    """How often each image is in a draw of as many with replacement, ``(images,)``."""
    drawn = torch.randint(images, (images,), generator=torch.Generator().manual_seed(seed))
    return torch.bincount(drawn, minlength=images).float()


def _features(name: str, part: Features | tuple[Tensor, Tensor]) -> Features:
    """Plain tensors as :class:`Features`: a square grid where N is a square."""
    if not isinstance(part, Features):
        tokens, labels = part
        side = math.isqrt(tokens.shape[1])
        part = Features(tokens, labels, (side, side) if side * side == tokens.shape[1] else None)
    if part.tokens.ndim != 3 or len(part.tokens) != len(part.labels):
        raise ValueError(
            f"{name}: expected features (n, N, d) and labels (n,), got {tuple(part.tokens.shape)} and "
            f"{tuple(part.labels.shape)}"
        )
    return part


def train_heads(
    heads: list[nn.Module],
    rates: list[float],
    features: Tensor,
    labels: Tensor,
    grid: tuple[int, int] | None,
    *,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    weights: Tensor | None = None,
    after_epoch: Callable[[list[list[float]]], object] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[list[float]]:
    """Train heads on the same batches of features, each as if it were alone: AdamW, one cycle.

    Heads that are one attention meet the features together, and those of one kind and one rate are one stack of
    parameters (:mod:`simpool_lite.training.stacked`); the others take their turns.

    Args:
        heads: of the class :class:`Head`, on the device of the features; trained in place.
        rates: the maximum of each head's learning rate.
        features: ``(n, N, d)``, or whatever gives such tensors by ``features[index]``.
        labels: ``(n,)``.
        grid: of the N positions.
        epochs: passes over the features.
        batch_size: features per step; the last incomplete batch is left out.
        weight_decay: of AdamW.
        seed: of the order.
        weights: of the images in the loss of each head, ``(heads, n)``; None is 1.
        after_epoch: called after each epoch with the losses so far; the heads then have the parameters so far, and must
            not be changed.
        checkpoint: file of what has been trained, written after each epoch before ``after_epoch`` is called. The same
            call goes on from there and ends at the same parameters; removing the file is the caller's.
        progress: show a bar over the epochs.

    Returns:
        For each head its mean training loss per epoch; infinite or NaN where it diverged, which stops no other head.
    """
    saved = torch.load(checkpoint, weights_only=True) if checkpoint and checkpoint.is_file() else None
    for head, state in zip(heads, saved["heads"], strict=True) if saved else ():
        head.load_state_dict(state)
    numbers: dict[tuple[str, float], list[int]] = {}  # of the heads in each stack
    alone = []
    for number, (head, rate) in enumerate(zip(heads, rates, strict=True)):
        head.train()
        if can_be_stacked(head):
            numbers.setdefault((head.kind, rate), []).append(number)
        else:
            alone.append(number)
    stacks = [Stack([heads[number] for number in those]) for those in numbers.values()]
    stacked = [number for those in numbers.values() for number in those]
    groups = [{"params": stack.trained, "lr": rate} for stack, (_, rate) in zip(stacks, numbers, strict=True)]
    groups += [{"params": list(heads[number].parameters()), "lr": rates[number]} for number in alone]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    batch_size = min(batch_size, len(labels))
    steps = len(labels) // batch_size
    schedule = OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=epochs * steps)
    order = torch.Generator().manual_seed(seed)
    curves: list[list[float]] = [[] for _ in heads]
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        curves = saved["curves"]
        _set_random_states(saved["random"])
    for epoch in tqdm(range(epochs), "heads", disable=not progress):
        shuffled = torch.randperm(len(labels), generator=order)
        if epoch < len(curves[0]):
            continue
        losses = torch.zeros(len(heads), device=labels.device)
        for index in shuffled[: steps * batch_size].split(batch_size):
            batch, target = features[index].float(), labels[index]
            if stacks:
                of_images = torch.cat(losses_of(stacks, batch, grid, target))
                if weights is not None:
                    of_images = of_images * weights[stacked][:, index]
                of_stacks = of_images.mean(1)
                of_stacks.sum().backward()
                losses[stacked] += of_stacks.detach()
            for number in alone:
                of_images = F.cross_entropy(heads[number](batch, grid)[0], target, reduction="none")
                loss = (of_images if weights is None else of_images * weights[number, index]).mean()
                loss.backward()
                losses[number] += loss.detach()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        for curve, loss in zip(curves, (losses / steps).tolist(), strict=True):
            curve.append(loss)
        for stack in stacks:
            stack.unstack()
        if checkpoint is not None:
            parts = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "curves": curves}
            parts |= {"heads": [head.state_dict() for head in heads], "random": _random_states()}
            with write_atomically(checkpoint) as temporary:
                torch.save(parts, temporary)
        if after_epoch is not None:
            with torch.random.fork_rng():
                after_epoch(curves)
            for head in heads:
                head.train()
    return curves


def _random_states() -> list[Tensor]:
    """Of the generators that heads may draw from: the processor's, and each CUDA device's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _set_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) == 1 + torch.cuda.device_count():  # not begun on another machine
        torch.cuda.set_rng_state_all(states[1:])


def accuracy(head: nn.Module, part: Features) -> float:
    """Of a head on features, in percent."""
    return 100 * measure_head(head, part.tokens, part.labels, part.grid)[0].float().mean().item()


@torch.no_grad()
def measure_head(
    head: nn.Module, features: Tensor, labels: Tensor, grid: tuple[int, int] | None, batch_size: int = 512
) -> tuple[Tensor, float, Tensor | None]:
    """Of each image whether the head is right, bool ``(n,)``; the mean loss; the maps ``(n, H, W)``, mean over M.

    Without a grid the maps are ``(n, N)``.
    """
    head.eval()
    correct, maps, loss = [], [], 0.0
    for batch, target in zip(features.split(batch_size), labels.split(batch_size), strict=True):
        logits, attention = head(batch.float(), grid)
        correct.append(logits.argmax(1) == target)
        loss += F.cross_entropy(logits, target, reduction="sum").item()
        if attention is not None:
            maps.append(attention.mean(1).unflatten(-1, grid) if grid else attention.mean(1))
    return torch.cat(correct).cpu(), loss / len(labels), torch.cat(maps).cpu() if maps else None
