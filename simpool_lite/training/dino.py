"""Pre-train a backbone without labels: DINO (Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers", 2021). In this order: the networks, the loss, the schedules, the training.

A student sees two large and several small crops of each image, a teacher the large ones only. The student is trained
to give each crop the output that the teacher gives another crop of the image; the teacher is a moving average of the
student. SimPool stands in both, where a transformer's class token or a ConvNet's average would.
"""

import copy
import json
import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, set_seed
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..checks import check_int, check_number
from ..datasets import LabelledImages
from ..files import write_atomically
from .crops import MultiCrop
from .supervised import accelerator_on

FIGURES = ("loss", "entropy", "kl", "information", "spread")  # means over an epoch
# Below one of them a run has collapsed: the teacher's answers say nothing of the image, and nothing is left to learn.
# In their last epoch recorded runs had an information of 0.004 and less, or of 0.008 and more (tests/experiments/
# test_without_labels.py); runs without centring or without sharpening had 0.002 and less after the first. What was
# learned before a collapse stays: k-NN of collapsed runs is up to 10 points above the untrained network's.
SMALLEST = {"information": 0.005, "spread": 1e-3}
# Arguments of pretrain() that a run may be resumed with other values of.
FREE = ("model", "data", "device", "folder", "after_epoch", "stop_if_collapsed", "workers", "progress")


class ProjectionHead(nn.Module):
    """Features ``(B, dim)`` to ``(B, outputs)``: an MLP, then the cosines of what it gives with prototypes.

    Args:
        dim: width of the features.
        outputs: K, the number of prototypes.
        hidden: width of the MLP's two hidden layers.
        bottleneck: width of what it gives, and of the prototypes.
        batch_norm: batch norms in the MLP (the published ResNet-50).
        norm_last_layer: the prototypes keep the length one, which is more stable; False lets them learn it (the
            published ViT-S).
    """

    def __init__(
        self,
        dim: int,
        outputs: int = 65536,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (dim, hidden):
            norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
            layers += [nn.Linear(inputs, hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, outputs, bias=False))
        lengths = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(lengths).requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class Network(nn.Module):
    """A backbone and its head, for a list of crops: one pass per size of crop."""

    def __init__(self, backbone: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Outputs ``(V * B, K)`` and features ``(V * B, d)`` of V crops ``(B, 3, h, w)``, crops outermost."""
        batches = [torch.cat(list(same)) for _, same in groupby(crops, key=lambda crop: crop.shape)]
        features = torch.cat([self.backbone(b.contiguous(memory_format=torch.channels_last)) for b in batches])
        return self.head(features), features


class DINOLoss(nn.Module):
    """Cross-entropy of the student's outputs with the teacher's, which are centred and sharpened (equation 2)::

        q = softmax((teacher - c) / T_t)    p = softmax(student / T_s)    loss = mean over pairs of - sum_k q_k ln p_k

    The pairs are of a large crop at the teacher and another crop at the student. The centre c keeps one output from
    winning always, a T_t below T_s keeps all from winning equally; with one of the two alone the outputs collapse.
    """

    def __init__(self, outputs: int, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.register_buffer("center", torch.zeros(outputs))

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the mean of q over the batch, and the mean of q's entropy.

        Args:
            student: outputs ``(V * B, K)``, large crops first.
            teacher: outputs ``(2 * B, K)``.
            temperature: T_t.

        Returns:
            Two scalars and, between them, ``(K,)``.
        """
        count = len(teacher) // 2
        log_p = F.log_softmax(student / self.student_temperature, -1).unflatten(0, (-1, count))
        q = F.softmax((teacher - self.center) / temperature, -1).unflatten(0, (2, count))
        pairs = -torch.einsum("tbk,vbk->tv", q, log_p) / count
        loss = pairs[~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)].mean()
        entropy = torch.special.entr(q).sum(-1).mean()
        return loss, q.mean((0, 1)), entropy

    def update_center(self, mean_output: Tensor) -> None:
        """c moves by a tenth towards the teacher's mean output of a batch, ``(K,)`` (equation 4)."""
        self.center.lerp_(mean_output, 1 - self.center_momentum)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at ``steps``.

    >>> [round(cosine(1.0, 0.0, step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def linear(start: float, end: float, step: int, steps: int) -> float:
    """A line of ``steps`` points from ``start`` to ``end``, where it stays.

    >>> [linear(0.0, 1.0, step, 3) for step in range(5)]
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    if step >= steps:
        return end
    return start + (end - start) * step / max(steps - 1, 1)


def pretrain(
    model: nn.Module,
    data: LabelledImages,
    device: str = "auto",
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    final_learning_rate: float = 1e-6,
    warmup: float = 0.1,
    optimizer: str = "adamw",
    weight_decay: tuple[float, float] = (0.04, 0.4),
    clip: float | None = None,
    momentum: float = 0.996,
    center_momentum: float = 0.9,
    temperature: tuple[float, float] = (0.04, 0.07),
    temperature_warmup: float = 0.3,
    freeze_last_layer: int = 1,
    crops: dict | None = None,
    head: dict | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    after_epoch: Callable[[nn.Module], dict[str, float]] | None = None,
    stop_if_collapsed: bool = True,
    workers: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Pre-train a backbone by DINO; the labels are not looked at.

    The defaults are DINO's for a ViT-S and 100 epochs. The published order of SimPool is ``norm_first=False``; a ViT
    needs ``dynamic_img_size=True`` for crops of two sizes. Several processes share the batch as in
    :mod:`simpool_lite.training.supervised`.

    Args:
        model: of ``create_model(..., num_classes=0)``. It becomes the student; the teacher begins as its copy, pooling
            and all, but drops nothing.
        data: images that are not augmented, at least as large as a large crop. The last incomplete batch is left out.
        device: "auto" is cuda, then mps, then cpu.
        epochs: passes over the images.
        batch_size: images per step, over all processes.
        learning_rate: at the end of the warm-up; DINO scales it with ``batch_size / 256``.
        final_learning_rate: at the end of the cosine that follows.
        warmup: share of the steps in which the rate rises from zero.
        optimizer: a name of timm's: "adamw", or "lars" for ConvNets in large batches.
        weight_decay: at the start and at the end of a cosine; biases and norms have none.
        clip: largest norm of the gradient of one parameter tensor, None for no clipping.
        momentum: of the teacher at the start of its cosine to one. Small batches want more, such as 0.9995.
        center_momentum: of the centre; one leaves it where it starts, at zero.
        temperature: the teacher's, at the start and at the end of its warm-up. The student's is 0.1.
        temperature_warmup: share of the epochs of that warm-up.
        freeze_last_layer: epochs in which the head's last layer stays as it is.
        crops: arguments of :class:`MultiCrop`.
        head: arguments of :class:`ProjectionHead`.
        seed: of the order of the images, the crops and the head.
        folder: of ``curve.csv`` and ``checkpoint.pt``, written after each epoch. The same call goes on from there.
        after_epoch: measures the teacher's backbone, the same on every process; its figures become part of the curve.
        stop_if_collapsed: False to watch a collapse to its end.
        workers: processes that load images.
        progress: show a bar over the steps.

    Returns:
        The teacher's backbone in evaluation mode, and the curve, per epoch ``epoch step loss entropy kl information
        spread`` and the figures of ``after_epoch``. ``entropy`` is that of the teacher's outputs q, at most ln K;
        ``kl`` is what the loss has above it. ``information`` is the entropy of the mean of q over a batch less
        ``entropy``: what an output tells about which image it is of, in nats, at most ln K and ln B; it is 0 when all
        images have the same output, whether one prototype takes all of it or each has its share. ``spread`` is that of
        the teacher's features: 0 if all images have the same, 1 if they point everywhere.

    Raises:
        ValueError: the model gives logits, or the folder's checkpoint is of another call.
        FloatingPointError: the loss is no longer finite.
        RuntimeError: the outputs or the features have collapsed.
    """
    settings = {name: value for name, value in locals().items() if name not in FREE}
    check_int("epochs", epochs), check_int("batch_size", batch_size)
    check_number("learning_rate", learning_rate, above_zero=True)
    if getattr(model, "num_classes", 0):
        raise ValueError(f"model: expected features, got {model.num_classes} logits; create it with num_classes=0")
    with accelerator_on(device) as accelerator:
        set_seed(seed)
        augment = MultiCrop(data.mean, data.std, **crops or {}).to(accelerator.device)
        student = Network(model, ProjectionHead(_width(model, augment.global_size), **head or {}))
        student = student.to(accelerator.device, memory_format=torch.channels_last)
        for tensor in student.state_dict().values():  # else the teachers of several processes begin differently
            broadcast(tensor)
        teacher = copy.deepcopy(student).requires_grad_(False)
        outputs = student.head.last_layer.out_features
        criterion = DINOLoss(outputs, center_momentum=center_momentum).to(accelerator.device)

        order = torch.Generator()
        loader = DataLoader(
            data,
            min(batch_size, len(data)),
            shuffle=True,
            drop_last=True,
            generator=order,
            collate_fn=data.collate,
            num_workers=workers,
        )
        trained = [p for p in student.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim <= 1]}]
        optimizer = create_optimizer_v2(groups, optimizer, lr=learning_rate, weight_decay=0.0)
        wrapped, optimizer, loader = accelerator.prepare(student, optimizer, loader)
        steps = epochs * len(loader)
        rising = round(warmup * steps)

        path = None if folder is None else Path(folder) / "checkpoint.pt"
        settings |= {"images": len(data), "model": getattr(model, "create_config", None)}
        parts = {"student": student, "teacher": teacher, "loss": criterion, "optimizer": optimizer}
        curve = _load(path, settings, parts)
        hidden = not (progress and accelerator.is_main_process)
        bar = tqdm(total=steps, initial=len(curve) * len(loader), desc="DINO", disable=hidden)
        for epoch in range(len(curve), epochs):
            # A seed per epoch, so that a run that goes on draws what it would have drawn without the pause.
            set_seed(1000 * seed + epoch, device_specific=True)
            order.manual_seed(1000 * seed + epoch)
            _set_modes(student, teacher)
            sums = torch.zeros(len(FIGURES), device=accelerator.device)
            for step, (images, _) in enumerate(loader, epoch * len(loader)):
                optimizer.param_groups[0]["weight_decay"] = cosine(*weight_decay, step, steps)
                rate = linear(0.0, learning_rate, step, rising)
                if step >= rising:
                    rate = cosine(learning_rate, final_learning_rate, step - rising, steps - rising)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                views = augment(data.denormalize(images))
                with torch.no_grad(), accelerator.autocast():
                    teacher_out, features = teacher(views[:2])
                student_out, _ = wrapped(views)
                sharpness = linear(*temperature, epoch, round(temperature_warmup * epochs))
                loss, usage, entropy = criterion(student_out, teacher_out.float(), sharpness)
                criterion.update_center(accelerator.reduce(teacher_out.float().mean(0), "mean"))
                usage_entropy = torch.special.entr(accelerator.reduce(usage, "mean")).sum()

                optimizer.zero_grad()
                accelerator.backward(loss)
                if clip is not None:
                    for parameter in trained:
                        clip_grad_norm_(parameter, clip)
                if epoch < freeze_last_layer:
                    student.head.last_layer.zero_grad()
                optimizer.step()
                average = get_ema_multi_avg_fn(cosine(momentum, 1.0, step, steps))
                average(list(teacher.parameters()), list(student.parameters()), None)
                own = [loss.detach(), entropy, loss.detach() - entropy, usage_entropy - entropy]
                sums += torch.stack([*own, _spread(features.float())])
                bar.update()
            figures = (accelerator.reduce(sums, "mean") / len(loader)).tolist()
            row = {
                "epoch": epoch + 1,
                "step": step + 1,
                **dict(zip(FIGURES, figures, strict=True)),
            }
            _check_health(row, outputs, stop_if_collapsed)
            for buffer in teacher.buffers():  # a batch norm's statistics differ from process to process
                broadcast(buffer)
            if after_epoch is not None:
                row |= {name: float(value) for name, value in after_epoch(teacher.backbone.eval()).items()}
            curve.append(row)
            bar.set_postfix({name: f"{value:.3g}" for name, value in row.items() if name not in ("epoch", "step")})
            if path is not None and accelerator.is_main_process:
                _save(path, settings, parts, curve)
        bar.close()
    return teacher.backbone.requires_grad_().eval(), curve


@torch.no_grad()
def _width(model: nn.Module, size: int) -> int:
    features = model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    return features.shape[1]


def _set_modes(student: nn.Module, teacher: nn.Module) -> None:
    """The teacher normalises by its batches, as the student does, but nothing in it is dropped."""
    student.train()
    for module in teacher.modules():
        module.training = isinstance(module, _BatchNorm)


def _spread(features: Tensor) -> Tensor:
    """Standard deviation of unit vectors ``(B, d)`` around their mean, over all directions together."""
    return F.normalize(features, dim=1).var(0, correction=0).sum().sqrt()


def _check_health(row: dict[str, float], outputs: int, stop_if_collapsed: bool) -> None:
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']} in epoch {row['epoch']}; lower the learning rate, or clip")
    if stop_if_collapsed and any(row[name] < bound for name, bound in SMALLEST.items()):
        raise RuntimeError(
            f"collapsed in epoch {row['epoch']}, the same for every image: information {row['information']:.2g}, "
            f"spread {row['spread']:.2g}, entropy {row['entropy']:.3g} of at most {math.log(outputs):.3g}; lower the "
            "teacher's temperature or the learning rate, raise the momentum, or freeze the last layer for longer"
        )


def _load(path: Path | None, settings: dict, parts: dict) -> list[dict[str, float]]:
    """Fill the parts of a run from its checkpoint, if there is one, and return the curve up to it."""
    if path is None or not path.exists():
        return []
    saved = torch.load(path, map_location="cpu", weights_only=True)
    theirs, ours = json.loads(saved["settings"]), json.loads(json.dumps(settings, default=str))
    for name in ours:
        if ours[name] != theirs.get(name):
            raise ValueError(
                f"folder: {path} is of a run with {name}={theirs.get(name)!r}, got {ours[name]!r}; use another folder"
            )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["curve"]


def _save(path: Path, settings: dict, parts: dict, curve: list[dict[str, float]]) -> None:
    with write_atomically(path.with_name("curve.csv")) as temporary:
        pd.DataFrame(curve).to_csv(temporary, index=False)
    state = {name: part.state_dict() for name, part in parts.items()}
    with write_atomically(path) as temporary:
        torch.save(state | {"settings": json.dumps(settings, default=str), "curve": curve}, temporary)
