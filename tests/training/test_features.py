"""Features on disk are the model's, whole or continued; probes on them."""

import os
import subprocess
import sys

import pytest
import torch

from simpool_lite import create_model, load_data
from simpool_lite.training import features as module
from simpool_lite.training.features import cached_features
from simpool_lite.training.probes import Head, measure_head, probe, train_heads

HOW = {"device": "cpu", "progress": False, "batch_size": 16}


@pytest.fixture(scope="module")
def data():
    return load_data("photo-digits", "test", num_images=40)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("vit_micro", "cls", 10).eval()


def images(data):
    return torch.stack([data[i][0] for i in range(len(data))])


def test_cached_features_are_the_models(tmp_path, data, model):
    found = cached_features(model, data, dtype="float32", folder=tmp_path, **HOW)
    with torch.no_grad():
        expected = model.forward_features(images(data))
    torch.testing.assert_close(found.tokens, expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert found.grid == (6, 6) and torch.equal(found.labels, data.targets)
    half = cached_features(model, data, folder=tmp_path, **HOW)
    assert half.tokens.dtype == torch.float16
    torch.testing.assert_close(half.tokens.float(), expected[:, 1:], rtol=2e-3, atol=2e-3)
    token = cached_features(model, data, "cls", dtype="float32", folder=tmp_path, **HOW)
    torch.testing.assert_close(token.tokens, expected[:, :1], rtol=1e-4, atol=1e-5)
    assert token.grid is None and len(list(tmp_path.glob("features-*"))) == 3


def test_features_are_computed_once_and_continued_where_they_were_cut(tmp_path, data, model, monkeypatch):
    whole = cached_features(model, data, folder=tmp_path / "whole", **HOW).tokens.clone()
    real, calls = module.features_in_batches, []

    def cut(*arguments):
        for number, batch in enumerate(real(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            calls.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(module, "features_in_batches", cut)
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, data, folder=tmp_path, **HOW)
    assert not list(tmp_path.glob("features-*/set.json"))
    continued = cached_features(model, data, folder=tmp_path, **HOW)  # one batch is left
    assert calls == [16, 16, 8] and torch.equal(continued.tokens, whole)
    again = cached_features(model, data, folder=tmp_path, **HOW)
    assert calls == [16, 16, 8] and torch.equal(again.tokens, whole)


def test_other_weights_are_other_features(tmp_path, data, model):
    torch.manual_seed(1)
    other = create_model("vit_micro", "cls", 10).eval()
    first, second = (cached_features(m, data, folder=tmp_path, **HOW).tokens for m in (model, other))
    assert not torch.equal(first, second)


def test_bad_arguments_are_named(tmp_path, data, model):
    with pytest.raises(ValueError, match="layer: expected"):
        cached_features(model, data, "blocks", folder=tmp_path)
    with pytest.raises(ValueError, match="dtype: expected"):
        cached_features(model, data, dtype="float8", folder=tmp_path)
    with pytest.raises(ValueError, match="layer: expected 'tokens'"):
        cached_features(create_model("convnet_micro", "gap", 10), data, "cls", folder=tmp_path, **HOW)


def test_a_probe_is_the_head_trained_alone_at_its_best_rate():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    x = torch.randn(96, 9, 4, generator=generator) + torch.nn.functional.one_hot(labels, 4)[:, None]
    train, val, test = ((x[part], labels[part]) for part in (slice(0, 64), slice(64, 80), slice(80, 96)))
    variants = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool", "gamma": 2.0}}
    state = torch.get_rng_state()
    runs = probe(train, val, test, variants, seeds=3, rates=(1e-6, 3e-2), epochs=4, batch_size=16, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert runs.variant.tolist() == ["GAP"] * 3 + ["SimPool"] * 3 and (runs.learning_rate == 3e-2).all()
    for row in runs.itertuples():
        torch.manual_seed(row.seed)
        head = Head(dim=4, num_classes=3, **variants[row.variant])
        how = {"epochs": 4, "batch_size": 16, "weight_decay": 0.05, "seed": 0, "progress": False}
        train_heads([head], [3e-2], *train, (3, 3), **how)
        correct, loss, _ = measure_head(head, *test, (3, 3))
        assert row.top1 == 100 * correct.float().mean().item() and row.loss == pytest.approx(loss, rel=1e-4)
        assert row.parameters == sum(p.numel() for p in head.parameters())
    assert runs.groupby("variant").top1.mean().min() > 60  # there is something to learn, in one class of three


def test_a_probe_says_what_is_wrong():
    x, y = torch.randn(8, 5, 4), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"val: expected features \(n, N, d\) and labels"):
        probe((x, y), (x, y[:3]), (x, y), {"GAP": {"pool": "gap"}}, progress=False)
    with pytest.raises(ValueError, match="grid"):
        probe((x, y), (x, y), (x, y), {"HOW": {"pool": "how"}}, progress=False)
    with pytest.raises(ValueError, match="seeds"):
        probe((x, y), (x, y), (x, y), {"GAP": {"pool": "gap"}}, seeds=0, progress=False)


LARGER_THAN_MEMORY = """
import resource, sys
import torch
from simpool_lite.training import features
from simpool_lite.training.probes import Head, train_heads

SHAPE, IMAGES = (64, 512), 4096  # 256 MiB in float16

class Data:
    augment, targets = None, torch.arange(IMAGES) % 3
    def __len__(self): return IMAGES
    def __getitem__(self, i): return torch.full((1,), float(i)), 0

def in_batches(model, data, layer, batch_size, device, start=0):
    for first in range(start, IMAGES, batch_size):
        yield torch.full((batch_size, *SHAPE), float(first)), (8, 8)

features.features_in_batches = in_batches
model = torch.nn.Linear(1, 1)
warm_up = torch.randn(64, *SHAPE)
head = Head("simpool", 512, 3)
data_segment = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (data_segment + 2**27, -1))
try:
    torch.zeros(IMAGES, *SHAPE, dtype=torch.float16)
except RuntimeError as error:
    assert "allocate" in str(error), error
else:
    raise SystemExit("the limit does not hold")
found = features.cached_features(model, Data(), folder=sys.argv[1], device="cpu", batch_size=64, progress=False)
how = {"epochs": 1, "batch_size": 32, "weight_decay": 0.0, "seed": 0, "progress": False}
every = torch.arange(0, IMAGES, 16)  # eight steps on images from all over the file
class Some:
    def __getitem__(self, index): return found.tokens[every[index]]
train_heads([head], [1e-3], Some(), found.labels[every], found.grid, **how)
assert found.tokens[-1, 0, 0] == IMAGES - 64
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's, on memory that is no file's")
def test_features_may_be_larger_than_memory(tmp_path):
    """128 MiB for 256 MiB of features; as a plain tensor they do not fit, which is tried, too."""
    command = [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr + ended.stdout
