"""DINO against its formulas written anew, lightly's loss and steps worked by hand; what reaches whom; resuming."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from simpool_lite import create_model, load_data
from simpool_lite.training.crops import MultiCrop
from simpool_lite.training.dino import DINOLoss, ProjectionHead, _check_health, cosine, linear, pretrain

CROPS = {"global_size": 24, "local_size": 12, "local_crops": 1, "blur": 0.5}
HEAD = {"outputs": 16, "hidden": 8, "bottleneck": 4}


@pytest.fixture(scope="module")
def data():
    return load_data("photo-digits", "train", num_images=12)


def tiny(gamma: float | None = 1.7, **options) -> nn.Module:
    torch.manual_seed(0)
    options = {"pool": "simpool", "pool_kwargs": {"gamma": gamma}, "width": 8} | options
    return create_model("convnet_micro", num_classes=0, norm_first=False, **options)


def run(model, data, **changes):
    """Two epochs of three steps, two of them the warm-up."""
    arguments = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "final_learning_rate": 1e-5, "warmup": 1 / 3}
    arguments |= {"crops": CROPS, "head": HEAD}
    return pretrain(model, data, "cpu", progress=False, **arguments | changes)


def outputs(crops: int, step: int, batch: int = 5, k: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(crops, batch, k, generator=generator, dtype=torch.float64) + torch.arange(k) / 3


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_the_loss_is_the_formula():
    """Pair by pair and image by image in numpy, while the centre moves."""
    criterion, centre = DINOLoss(7).double(), np.zeros(7)
    for step in range(3):
        student, teacher = outputs(4, step), outputs(2, 100 + step)
        losses, entropies = [], []
        for large in range(2):
            for crop in range(4):
                if crop == large:
                    continue
                for image in range(5):
                    q = softmax((teacher[large, image].numpy() - centre) / 0.05)
                    p = softmax(student[crop, image].numpy() / 0.1)
                    losses.append(-(q * np.log(p)).sum())
                    entropies.append(-(q * np.log(q)).sum())
        got = criterion(student.flatten(0, 1), teacher.flatten(0, 1), 0.05)
        centred = (teacher.numpy() - centre) / 0.05
        usage = np.mean([softmax(row) for view in centred for row in view], axis=0)
        loss, mean_of_q, entropy = (value.numpy() for value in got)
        assert (loss, entropy) == pytest.approx((np.mean(losses), np.mean(entropies)), rel=1e-12)
        assert mean_of_q == pytest.approx(usage, rel=1e-12)
        criterion.update_center(teacher.flatten(0, 1).mean(0))
        centre = 0.9 * centre + 0.1 * teacher.numpy().mean((0, 1))
        assert criterion.center.numpy() == pytest.approx(centre, rel=1e-12)


def test_the_loss_is_lightlys():
    """Ten steps in which the centre moves, the temperature rises, and the student gets gradients."""
    lightly = pytest.importorskip("lightly.loss")
    ours = DINOLoss(7)
    theirs = lightly.DINOLoss(7, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=6)
    for step in range(10):
        student, teacher = outputs(5, step).float().requires_grad_(), outputs(2, 100 + step).float()
        other = student.detach().clone().requires_grad_()
        loss, _, _ = ours(student.flatten(0, 1), teacher.flatten(0, 1), linear(0.04, 0.07, step, 6))
        ours.update_center(teacher.flatten(0, 1).mean(0))
        expected = theirs(list(teacher), list(other), epoch=step)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.center, theirs.center[0, 0], rtol=1e-6, atol=1e-6)
        loss.backward(), expected.backward()
        torch.testing.assert_close(student.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_an_output_that_underflows_has_no_entropy():
    teacher = torch.tensor([[1000.0, 0.0]]).repeat(2, 1)
    loss, _, entropy = DINOLoss(2)(torch.zeros(2, 2), teacher, 0.04)
    assert (loss.item(), entropy.item()) == pytest.approx((math.log(2), 0))


def test_schedules():
    assert cosine(0.996, 1.0, 0, 10) == pytest.approx(0.996) and cosine(0.996, 1.0, 10, 10) == 1
    assert cosine(0.996, 1.0, 5, 10) == pytest.approx(0.998)
    assert [linear(0.04, 0.07, epoch, 30) for epoch in range(30)] == pytest.approx(np.linspace(0.04, 0.07, 30))
    assert [linear(0.04, 0.07, epoch, 30) for epoch in (30, 99)] == [0.07, 0.07]
    assert [linear(0.04, 0.07, 0, steps) for steps in (0, 1)] == [0.07, 0.04]


@dataclass
class Run:
    """A run of two epochs with three steps each, and what was seen of it from outside."""

    model: nn.Module
    start: dict[str, torch.Tensor]
    teacher: nn.Module
    curve: list[dict[str, float]]
    checkpoint: dict
    forwards: list[tuple]
    backbones: list[nn.Module]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Run:
    model, forwards, backbones = tiny(), [], []
    start, folder = copy.deepcopy(model.state_dict()), tmp_path_factory.mktemp("whole")

    def look(module, inputs, _):
        forwards.append((module.training, tuple(inputs[0].shape)))

    def after_epoch(backbone):
        backbones.append(backbone)
        assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
        assert all(p.grad is not None for p in model.parameters())
        return {"figure": np.float64(len(backbones))}

    hook = model.pooling.register_forward_hook(look)  # the copy that becomes the teacher has it, too
    teacher, curve = run(model, data, folder=folder, after_epoch=after_epoch)
    hook.remove()
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    return Run(model, start, teacher, curve, checkpoint, forwards, backbones)


def test_the_last_step_of_a_run_follows_the_schedules(whole):
    """Step 5 of 6: two steps of warm-up, four of the rate's cosine; the weight decay's cosine is over all six."""
    groups = whole.checkpoint["optimizer"]["param_groups"]
    rate = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(0.75 * math.pi)) / 2
    decay = 0.4 - 0.36 * (1 + math.cos(5 / 6 * math.pi)) / 2
    assert [group["lr"] for group in groups] == pytest.approx([rate, rate])
    assert [group["weight_decay"] for group in groups] == pytest.approx([decay, 0])
    assert all(len(group["params"]) > 3 for group in groups)


def test_the_teacher_is_the_moving_average(data):
    """One step by hand: nine tenths of the start, one of the student."""
    model = tiny()
    start = copy.deepcopy(dict(model.named_parameters()))
    teacher, curve = run(model, data, epochs=1, batch_size=12, momentum=0.9, warmup=0.0)
    assert [row["step"] for row in curve] == [1]
    for name, parameter in teacher.named_parameters():
        expected = 0.9 * start[name] + 0.1 * model.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)
    moved = [not torch.equal(parameter, start[name]) for name, parameter in model.named_parameters()]
    assert all(moved)


def test_the_teachers_of_several_processes_begin_as_the_first_ones_student(data, monkeypatch):
    """What the first process sends arrives before the copy; with a momentum of one the teacher stays what it was."""
    monkeypatch.setattr("simpool_lite.training.dino.broadcast", lambda tensor: tensor.fill_(0.01))
    teacher, _ = run(tiny(), data, epochs=1, batch_size=12, momentum=1.0, stop_if_collapsed=False)
    assert all(torch.equal(p, torch.full_like(p, 0.01)) for p in teacher.parameters())


def test_who_sees_what(whole):
    """The student all crops, the teacher the large ones, where nothing is dropped; both have the pooling's gamma."""
    a_step = [(False, (8, 32, 6, 6)), (True, (8, 32, 6, 6)), (True, (4, 32, 3, 3))]  # batches of four images
    assert whole.forwards == [(False, (1, 32, 6, 6)), *a_step * 6]  # one image to see the features' width
    model, teacher = whole.model, whole.teacher
    assert whole.backbones == [teacher, teacher] and teacher is not model
    assert teacher.pooling is not model.pooling and teacher.pooling.gamma == model.pooling.gamma == 1.7
    assert not teacher.training and all(p.requires_grad for p in teacher.parameters())


def test_the_curve(whole):
    names = ["epoch", "step", "loss", "entropy", "kl", "information", "spread", "figure"]
    assert [list(row) for row in whole.curve] == [names] * 2
    assert [(row["epoch"], row["step"], row["figure"]) for row in whole.curve] == [(1, 3, 1.0), (2, 6, 2.0)]
    for row in whole.curve:
        assert row["loss"] == pytest.approx(row["entropy"] + row["kl"], rel=1e-5)
        assert 0 < row["entropy"] < math.log(16) and 0 < row["spread"] < 1
        assert 0 < row["information"] < math.log(16) - row["entropy"]


def test_a_batch_norm_of_the_teacher_sees_its_batches(whole):
    model, teacher = whole.model.stem.bn, whole.teacher.stem.bn
    assert not torch.equal(teacher.running_mean, whole.start["stem.bn.running_mean"])
    assert teacher.num_batches_tracked == 6 and model.num_batches_tracked == 12  # two sizes of crops


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_last_layer_is_frozen_at_first(data, tmp_path, frozen):
    run(tiny(), data, epochs=1, batch_size=12, warmup=0.0, freeze_last_layer=frozen, folder=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    name = "head.last_layer.parametrizations.weight.original1"
    student, teacher = (state[who][name] for who in ("student", "teacher"))
    assert torch.equal(student, teacher) == bool(frozen)  # the teacher of what never moved is what it was
    assert not torch.equal(state["student"]["head.mlp.0.weight"], state["teacher"]["head.mlp.0.weight"])


def test_clipping_is_of_each_tensor(data):
    """A gradient clipped to nearly nothing leaves plain gradient descent where it was."""
    model = tiny()
    start = copy.deepcopy(model.state_dict())
    options = {
        "optimizer": "momentum",
        "learning_rate": 1.0,
        "weight_decay": (0.0, 0.0),
        "warmup": 0.0,
        "epochs": 1,
        "batch_size": 12,
    }
    run(model, data, clip=1e-3, **options)
    distances = [(p - start[name]).norm().item() for name, p in model.named_parameters()]
    assert max(distances) < 1.1e-3 and sum(d > 0.9e-3 for d in distances) > len(distances) / 2
    free = tiny()
    run(free, data, **options)
    assert max((p - start[name]).norm().item() for name, p in free.named_parameters()) > 1e-2


class Stop(Exception):
    pass


def stop_in_epoch_two():
    calls = []

    def after_epoch(_):
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return {}

    return after_epoch


def test_a_run_goes_on_where_it_stopped(whole, data, tmp_path):
    with pytest.raises(Stop):
        run(tiny(), data, folder=tmp_path, after_epoch=stop_in_epoch_two())
    torch.rand(3)  # who uses the generator in between does not matter
    model = tiny()
    teacher, curve = run(model, data, folder=tmp_path)
    assert [{**row, "figure": row["epoch"]} for row in curve] == whole.curve
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "curve.csv"]
    assert pd.read_csv(tmp_path / "curve.csv").to_dict("records") == [pytest.approx(row) for row in curve]
    for resumed, straight in ((teacher, whole.teacher), (model, whole.model)):
        torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)
    # What is finished is returned as it was.
    again, same = run(tiny(), data, folder=tmp_path)
    assert same == curve
    torch.testing.assert_close(again.state_dict(), teacher.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_is_of_one_call(data, tmp_path):
    one_step = {"epochs": 1, "batch_size": 12, "folder": tmp_path}
    run(tiny(), data, **one_step)
    with pytest.raises(ValueError, match=r"folder: .*checkpoint.pt is of a run with epochs=1, got 2; use another"):
        run(tiny(), data, **one_step | {"epochs": 2})
    with pytest.raises(ValueError, match="is of a run with model="):
        run(tiny(gamma=2.0), data, **one_step)


def test_seeds(data):
    losses = [run(tiny(), data, epochs=1, batch_size=12, seed=seed)[1][0]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


class Constant(nn.Module):
    """Features that are the same for all images, or with a scale above zero nearly so."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.linear = scale, nn.Linear(3, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(1 + self.scale * images.mean((2, 3)))


def test_features_that_are_all_the_same_end_the_run(data):
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=r"collapsed in epoch 1, the same for every image: .* spread 0, entropy"):
        run(Constant(0.0), data)
    torch.manual_seed(0)
    _, curve = run(Constant(1.0), data, epochs=1)
    assert curve[-1]["spread"] > 0.01
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch"):
        run(tiny(), data, learning_rate=1e30, warmup=0.0, freeze_last_layer=0)


BROKEN = {"no centring": {"center_momentum": 1.0}, "no sharpening": {"temperature": (1.0, 1.0)}}


@pytest.mark.parametrize(("broken", "entropy"), [("no centring", 0), ("no sharpening", math.log(32))], ids=BROKEN)
def test_a_loss_with_one_of_its_two_halves_collapses_and_the_run_ends(broken, entropy):
    """Caron et al., 2021, section 5.3: without centring one output takes all, without sharpening each has its share.

    Neither the divergence nor the features show it, both stay far from zero; a run with both halves has an information
    of 0.4 nats and more here.
    """
    data = load_data("photo-digits", "train", num_images=256, size=32, object_size=(20, 24), distractors=0)
    options = {"epochs": 2, "batch_size": 32, "learning_rate": 4e-3, "momentum": 0.9, "temperature": (0.04, 0.04)}
    options |= {"freeze_last_layer": 0, "weight_decay": (0.04, 0.04), "warmup": 0.1, "final_learning_rate": 1e-6}
    options |= {"head": {"outputs": 32, "hidden": 64, "bottleneck": 16}} | BROKEN[broken]
    _, curve = run(tiny(None), data, stop_if_collapsed=False, **options)
    assert curve[-1]["information"] < 0.003 and curve[-1]["entropy"] == pytest.approx(entropy, abs=0.1)
    assert curve[-1]["kl"] > 0.003 and curve[-1]["spread"] > 0.5
    with pytest.raises(RuntimeError, match=r"collapsed in epoch 2, the same for every image: information 0\.00"):
        _check_health(curve[-1], 32, stop_if_collapsed=True)


def test_any_backbone_with_any_pooling(data):
    vit = create_model("vit_micro", "cls", 0, dynamic_img_size=True, drop_path_rate=0.1)
    crops = CROPS | {"global_size": 32, "local_size": 16}
    teacher, _ = run(vit, data, epochs=1, crops=crops, head=HEAD | {"batch_norm": True, "norm_last_layer": False})
    assert teacher(torch.zeros(1, 3, 48, 48)).shape == (1, 96)
    several = tiny(pool="kmeans", pool_kwargs={"k": 3, "reduce": "concat"})
    teacher, _ = run(several, data, epochs=1, optimizer="lars")
    assert teacher(torch.zeros(1, 3, 48, 48)).shape == (1, 96)
    with pytest.raises(ValueError, match="model: expected features, got 10 logits; create it with num_classes=0"):
        run(create_model("convnet_micro", "simpool", 10), data)


def test_head():
    head = ProjectionHead(6, 9, hidden=8, bottleneck=4)
    with torch.no_grad():
        for parameter in head.mlp.parameters():
            parameter.copy_(torch.randn_like(parameter))
        z = torch.randn(5, 6)
        bottleneck = head.mlp(z)
        prototypes = head.last_layer.parametrizations.weight.original1
        expected = nn.functional.cosine_similarity(bottleneck[:, None], prototypes, dim=-1)
    torch.testing.assert_close(head(z), expected)
    trainable = {name: p.requires_grad for name, p in head.named_parameters()}
    assert trainable.pop("last_layer.parametrizations.weight.original0") is False and all(trainable.values())
    free = ProjectionHead(6, 9, hidden=8, bottleneck=4, batch_norm=True, norm_last_layer=False)
    assert all(p.requires_grad for p in free.parameters())
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in free.mlp) == 2


def test_crops():
    """Of a ramp from left to right small crops see less than large ones; no two images are cropped alike."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    crops = MultiCrop(mean, std, global_size=24, local_size=12, local_crops=3, global_scale=(0.6, 1.0), blur=0.5)
    ramp = torch.linspace(0.2, 0.8, 48).expand(64, 3, 48, 48)
    torch.manual_seed(0)
    views = crops(ramp)
    assert [view.shape for view in views] == [(64, 3, 24, 24)] * 2 + [(64, 3, 12, 12)] * 3
    assert len({round(view.sum().item(), 3) for batch in views for view in batch}) > 0.9 * 5 * 64
    pixels = [view * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None] for view in views]
    assert all(p.min() > -0.1 and p.max() < 1.1 for p in pixels)
    large, small = pixels[0].mean(1).std((1, 2)).mean(), pixels[2].mean(1).std((1, 2)).mean()
    assert 0.1 < small / large < 0.6  # areas of 0.8 and 0.15: widths in the ratio 0.43
    falling = (pixels[0][:, :, :, 0] > pixels[0][:, :, :, -1]).float().mean()
    assert 0.3 < falling < 0.7  # mirrored
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(views, crops(ramp), strict=True))
    assert len(MultiCrop(mean, std, local_crops=0)(ramp[:1])) == 2
