"""Heads on frozen features: many at once are what each is alone, and what a plain loop makes of it."""

import pytest
import torch
import torch.nn.functional as F

from simpool_lite import create_pool
from simpool_lite.training.probes import Head, measure_head, probe, train_heads
from simpool_lite.training.stacked import can_be_stacked, shifts

GRID = (4, 4)
SHORT = {"epochs": 2, "batch_size": 16, "weight_decay": 0.05, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(70, 16, 8, generator=generator), torch.randint(3, (70,), generator=generator)


def heads():
    torch.manual_seed(1)
    return [Head("gap", 8, 3), Head("simpool", 8, 3, gamma=2.0), Head("how", 8, 3)]


def test_heads_trained_together_are_those_trained_alone(features):
    together = heads()
    curves = train_heads(together, [1e-2, 3e-3, 1e-3], *features, GRID, **SHORT)
    for number, (alone, rate) in enumerate(zip(heads(), [1e-2, 3e-3, 1e-3], strict=True)):
        (curve,) = train_heads([alone], [rate], *features, GRID, **SHORT)
        assert curve == pytest.approx(curves[number], rel=1e-5)
        for one, other in zip(alone.parameters(), together[number].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# Kinds of head that have a stacked form, two of each and at one rate, beside some that have none.
STACKED = [
    ("gap", {}),
    ("max", {}),
    ("simpool", {}),
    ("simpool", {"num_heads": 2, "qkv_bias": True}),
    ("ep", {"num_queries": 4}),
    ("esimpool", {}),
    ("aim", {"num_queries": 2}),
    ("coca", {}),
    ("cae", {}),
    ("siglip", {}),
    ("jepa", {}),
    ("ablated_simpool", {"norm": "qk", "init": "learned"}),
    ("ablated_simpool", {"norm": "", "init": "random", "linear": "kv"}),
    ("ablated_simpool", {"init": "energy", "tied": True, "num_heads": 2}),
    ("ablated_simpool", {"init": "max", "norm": "", "linear": ""}),
]
ALONE = [("simpool", {"gamma": 2.0}), ("ablated_simpool", {"T": 2}), ("clip", {"feat_size": 4})]


def stacked_heads():
    made = []
    for seed in range(2):
        for pool, kwargs in STACKED + ALONE:
            torch.manual_seed(seed)
            made.append(Head(pool, 8, 3, **kwargs))
    return made


def test_stacked_heads_are_what_each_is_alone(features):
    """Parameters, running statistics, losses and logits, of heads with and without a stacked form."""
    together = stacked_heads()
    assert [can_be_stacked(head) for head in together] == 2 * ([True] * len(STACKED) + [False] * len(ALONE))
    curves = train_heads(together, [3e-3] * len(together), *features, GRID, **SHORT)
    for number, alone in enumerate(stacked_heads()):
        (curve,) = train_heads([alone], [3e-3], *features, GRID, **SHORT)
        assert curve == pytest.approx(curves[number], rel=1e-5)
        torch.testing.assert_close(alone.state_dict(), together[number].state_dict(), rtol=1e-5, atol=1e-5)
        logits = [head.eval()(features[0], GRID)[0] for head in (alone, together[number])]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "kwargs"), STACKED)
def test_a_stacked_head_is_trained_as_by_its_own_forward(features, pool, kwargs):
    """Against a loop over the head itself; what a BatchNorm takes away is rounding there, and left out here."""
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        heads.append(Head(pool, 8, 3, **kwargs))
    plain, stacked = heads
    trained = [p for name, p in plain.named_parameters() if name.removeprefix("pooling.") not in shifts(plain.pooling)]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=8)
    order = torch.Generator().manual_seed(3)
    for _ in range(2):
        for index in torch.randperm(70, generator=order)[:64].split(16):
            plain.zero_grad()
            F.cross_entropy(plain(features[0][index], GRID)[0], features[1][index]).backward()
            optimizer.step()
            schedule.step()
    train_heads([stacked], [3e-3], *features, GRID, **SHORT)
    torch.testing.assert_close(plain.state_dict(), stacked.state_dict(), rtol=1e-4, atol=1e-4)


def test_what_shifts_all_images_alike_is_found():
    assert shifts(create_pool("simpool", 8)) == ["norm_patches.bias"]
    assert shifts(create_pool("ablated_simpool", 8, norm="qkv")) == []  # the query's LayerNorm needs it
    assert set(shifts(create_pool("cae", 8))) == {"norm1_k.bias", "norm1_v.bias", "proj.bias"}
    assert shifts(create_pool("gap", 8)) == shifts(create_pool("ep", 8)) == []


def test_a_head_is_trained_as_by_a_plain_loop(features):
    """The loop of a textbook: AdamW, OneCycleLR, the pooling, a batch norm and a linear layer by hand."""
    head, _, _ = heads()
    (weight, bias), (x, y) = ([p.detach().clone() for p in head.parameters()], features)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8)
    order = torch.Generator().manual_seed(3)
    for _ in range(2):
        for index in torch.randperm(70, generator=order)[:64].split(16):
            z = x[index].mean(1)
            z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
            F.cross_entropy(z @ weight.T + bias, y[index]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    train_heads([head], [1e-2], *features, GRID, **SHORT)
    torch.testing.assert_close(head.classifier.weight, weight, rtol=1e-4, atol=1e-6)


def test_images_have_weights_for_each_head(features):
    """In the loss, an image that counts twice is one that is there twice."""
    x, y = features[0][:16], features[1][:16]
    weights = torch.randint(3, (4, 16), generator=torch.Generator().manual_seed(0)).float()
    step = {"epochs": 1, "batch_size": 16, "weight_decay": 0.0, "seed": 0, "progress": False}
    for pool, kwargs in (("simpool", {}), ("simpool", {"gamma": 2.0})):
        heads = []
        for seed in range(4):
            torch.manual_seed(seed)
            heads.append(Head(pool, 8, 3, **kwargs))
        logits = [head(x, GRID)[0] for head in heads]  # in training mode, before the one step
        curves = train_heads(heads, [1e-3] * 4, x, y, GRID, weights=weights, **step)
        for own, weight, curve in zip(logits, weights, curves, strict=True):
            expected = F.cross_entropy(own.repeat_interleave(weight.long(), 0), y.repeat_interleave(weight.long()))
            assert curve == pytest.approx([expected.item() * weight.sum().item() / 16], rel=1e-5)


def test_a_bootstrap_draws_the_images_of_each_seed(features):
    part = (features[0], features[1])
    how = {"seeds": 3, "rates": (1e-3,), "epochs": 1, "batch_size": 16, "progress": False}
    plain = probe(part, part, part, {"GAP": {"pool": "gap"}, "again": {"pool": "gap"}}, **how)
    drawn = probe(part, part, part, {"GAP": {"pool": "gap"}, "again": {"pool": "gap"}}, bootstrap=True, **how)
    for runs in (plain, drawn):  # the same seeds, the same images
        assert runs.loss[runs.variant == "GAP"].tolist() == pytest.approx(runs.loss[runs.variant == "again"].tolist())
    assert (drawn.loss - plain.loss).abs().min() > 1e-6


def test_one_head_that_diverges_stops_no_other(features):
    together = heads()[:2]
    bad, good = train_heads(together, [float("inf"), 1e-3], *features, GRID, **SHORT)
    assert not all(map(torch.isfinite, torch.tensor(bad))) and all(map(torch.isfinite, torch.tensor(good)))


def test_the_largest_logit_of_several_vectors_counts(features):
    torch.manual_seed(0)
    head = Head("kmeans", 8, 3, k=3, reduce="concat", max_logits=True).eval()
    vectors = create_pool("kmeans", 8, k=3, reduce="concat")
    vectors.load_state_dict(head.pooling.state_dict())
    z = vectors(features[0]).unflatten(1, (3, 8)) / (1 + head.norm.eps) ** 0.5
    expected = torch.stack([head.classifier(z[:, k]) for k in range(3)]).amax(0)
    torch.testing.assert_close(head(features[0], GRID)[0], expected)


def test_a_measured_head_knows_which_images_it_gets_right(features):
    head = heads()[1].eval()
    correct, loss, maps = measure_head(head, *features, GRID, batch_size=32)
    logits, attention = head(features[0], GRID)
    assert torch.equal(correct, logits.argmax(1) == features[1]) and maps.shape == (70, 4, 4)
    assert loss == pytest.approx(F.cross_entropy(logits, features[1]).item(), rel=1e-5)
    torch.testing.assert_close(maps.flatten(1), attention.mean(1))
    assert measure_head(heads()[0].eval(), *features, GRID)[2] is not None  # GAP's map is uniform


def test_what_is_cut_goes_on_after_its_last_epoch(features, tmp_path):
    """Stacked heads and others, one of which draws random numbers: the same parameters, bit for bit."""

    def made():
        torch.manual_seed(2)
        kinds = [("gap", {}), ("simpool", {}), ("aim", {}), ("simpool", {"gamma": 2.0}), ("dolg", {}), ("kmeans", {})]
        return [Head(pool, 8, 3, **kwargs) for pool, kwargs in kinds]

    def cut(curves):
        if len(curves[0]) == 2:
            raise KeyboardInterrupt

    how = SHORT | {"epochs": 4, "checkpoint": tmp_path / "heads.pt"}
    rates = [1e-2, 3e-3, 3e-3, 1e-3, 3e-3, 3e-3]
    whole, gone_on = made(), made()
    expected = train_heads(whole, rates, *features, GRID, **SHORT | {"epochs": 4})
    with pytest.raises(KeyboardInterrupt):
        train_heads(made(), rates, *features, GRID, after_epoch=cut, **how)
    seen = []
    curves = train_heads(gone_on, rates, *features, GRID, after_epoch=lambda so_far: seen.append(len(so_far[0])), **how)
    assert curves == expected and seen == [3, 4]
    for one, other in zip(whole, gone_on, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_accuracies_are_reported_after_each_epoch(features):
    part, seen = features, []
    how = {"seeds": 2, "rates": (3e-3, 1e-2), "epochs": 2, "batch_size": 16, "progress": False}
    variants = {"GAP": {"pool": "gap"}, "k-means": {"pool": "kmeans"}}
    runs = probe(part, part, part, variants, after_epoch=seen.append, **how)
    assert [table.epoch.unique().tolist() for table in seen] == [[1], [2]]
    keys = ["variant", "seed", "learning_rate", "top1"]
    assert seen[-1][keys].values.tolist() == runs[keys].values.tolist()  # val is test here
    assert runs[keys].equals(probe(part, part, part, variants, **how)[keys])  # looking changes nothing
