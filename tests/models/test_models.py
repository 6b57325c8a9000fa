"""create_model, replace_pooling and checkpoints, over the families of timm."""

import copy
import io
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.func import functional_call, grad, vmap

from simpool_lite import create_model, list_pools, load_model, replace_pooling, save_model
from simpool_lite.pooling import SimPool

# backbone -> side of its attention map for images of 64 pixels (or the smallest the model takes, given)
FAMILIES = {
    "convnet_micro": (48, 12),
    "vit_micro": (48, 6),
    "resnet18": (64, 2),
    "resnet50": (64, 2),
    "convnext_tiny": (64, 2),
    "efficientnet_b0": (64, 2),
    "mobilenetv3_small_100": (64, 2),
    "vit_tiny_patch16_224": (64, 4),
    "deit3_small_patch16_224": (64, 4),
    "vit_small_patch14_reg4_dinov2": (56, 4),
    "swin_tiny_patch4_window7_224": (224, 7),
    "maxvit_tiny_tf_224": (224, 7),
    # Beyond those named in the paper: other heads, layouts and prefixes.
    "beit_base_patch16_224": (224, 14),
    "cait_xxs24_224": (224, 14),
    "deit_tiny_distilled_patch16_224": (64, 4),
    "eva02_tiny_patch14_224": (56, 4),
    "mixer_s32_224": (224, 7),
    "mobilevit_xxs": (64, 2),
    "regnetx_002": (64, 2),
    "vgg11": (64, 2),
    "vit_base_patch16_siglip_224": (64, 4),
    "xcit_nano_12_p16_224": (64, 4),
}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_forward_backward_and_maps(backbone):
    torch.manual_seed(0)
    pixels, side = FAMILIES[backbone]
    model = create_model(backbone, "simpool", 10, img_size=pixels)
    images = torch.randn(2, 3, pixels, pixels)
    logits = model(images)
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.pooling.parameters())
    maps = model.attention(images)
    assert maps.shape == (2, 1, side, side) and not maps.requires_grad
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 1))
    assert model.training, "asking for maps must not change the mode"


AVERAGING = "resnet18 convnext_tiny mobilenetv3_small_100 regnetx_002 mobilevit_xxs swin_tiny_patch4_window7_224 "
AVERAGING += "maxvit_tiny_tf_224"


@pytest.mark.parametrize("backbone", AVERAGING.split())
def test_gap_leaves_a_model_that_averages_as_it_was(backbone):
    """timm's own average and ours: same logits, so everything after the pooling stayed in place."""
    model = timm.create_model(backbone, num_classes=10).eval()
    images = torch.randn(2, 3, FAMILIES[backbone][0], FAMILIES[backbone][0])
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(replace_pooling(model, "gap")(images), expected)


def test_final_norm_before_or_after_the_pooling():
    """A ViT by hand: norm_first pools normalised patches, otherwise the pooled patches are normalised."""
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=2).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain.norm.weight.normal_()
        normed = plain.forward_features(images)[:, 1:]  # the class token is not pooled
        before = plain.head(normed.mean(1))
        model = replace_pooling(copy.deepcopy(plain), "gap")
        torch.testing.assert_close(model(images), before)

        norm, trunk = plain.norm, copy.deepcopy(plain)
        trunk.norm = torch.nn.Identity()
        after = plain.head(norm(trunk.forward_features(images)[:, 1:].mean(1)))
        model = replace_pooling(copy.deepcopy(plain), "gap", norm_first=False)
        torch.testing.assert_close(model(images), after)
    assert (before - after).abs().max() > 1e-3


def test_norm_in_the_head_moves_before_the_pooling():
    """timm puts the final norm of a ViT that averages behind the average (fc_norm)."""
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=1, global_pool="avg").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain.fc_norm.weight.normal_()
        patches = plain.forward_features(images)[:, 1:]
        expected = plain.head(plain.fc_norm(patches).mean(1))
        torch.testing.assert_close(replace_pooling(plain, "gap")(images), expected)


def test_published_order_and_pool_arguments():
    model = create_model("vit_micro", "simpool", 10, pool_kwargs={"gamma": 1.25, "num_heads": 2})
    assert isinstance(model.pooling, SimPool) and model.pooling.gamma == 1.25
    assert model.attention(torch.randn(1, 3, 48, 48)).shape == (1, 2, 6, 6)


def test_last_attention_is_the_last_forwards():
    model = replace_pooling(timm.create_model("resnet18", num_classes=4), "simpool").eval()
    assert model.last_attention is None
    images = torch.randn(2, 3, 64, 96)
    model(images)
    first = model.last_attention
    assert first.shape == (2, 1, 2, 3) and not first.requires_grad
    torch.testing.assert_close(model.attention(images), first)


def test_head_on_features_of_another_model():
    """Features that were stored, or that forward_intermediates returns, need no forward before."""
    model = create_model("vit_tiny_patch16_224", "simpool", 4, img_size=64, depth=1).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_intermediates(images)[0]
    logits = model.forward_head(features)
    assert model.last_attention.shape == (2, 1, 4, 4)
    torch.testing.assert_close(logits, model(images))


def test_replacing_twice_and_deep_copies():
    model = replace_pooling(timm.create_model("resnet18", num_classes=4), "simpool").eval()
    copied, images = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(copied(images), model(images))
    torch.testing.assert_close(copied.attention(images), model.attention(images))
    assert type(replace_pooling(model, "gap")) is type(copied)
    torch.testing.assert_close(model.attention(images), torch.full((1, 1, 2, 2), 0.25))


@pytest.mark.parametrize("pool", list_pools() + list_pools(family="probing"))
@pytest.mark.parametrize("backbone", ["convnet_micro", "vit_micro"])
def test_every_pooling_in_both_kinds_of_model(backbone, pool):
    """Methods that see where a position is get the grid of a transformer's tokens, too."""
    model, images = create_model(backbone, pool, 10), torch.randn(2, 3, 48, 48)
    model(images).square().sum().backward()
    side = 12 if backbone == "convnet_micro" else 6
    if pool in {"max", "gap_max", "gem", "lse", "se", "ge"}:
        assert model.last_attention is None
        with pytest.raises(ValueError, match="pool: expected a pooling with an attention map"):
            model.attention(images)
    else:
        maps = model.attention(images)
        assert maps.shape[0] == 2 and maps.shape[2:] == (side, side)
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(maps.shape[:2]))


@pytest.mark.parametrize(
    "backbone", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_micro", "maxvit_rmlp_pico_rw_256"]
)
@pytest.mark.parametrize("max_logits", [False, True])
def test_several_vectors(backbone, max_logits):
    """Each vector goes through what stands before the classifier; then the classifier sees all, or the best."""
    torch.manual_seed(0)
    kwargs = {"k": 3, "reduce": "concat"}
    size = {"vit_micro": 48, "maxvit_rmlp_pico_rw_256": 256}.get(backbone, 64)
    model = create_model(backbone, "otk", 7, pool_kwargs=kwargs, max_logits=max_logits).eval()
    width = create_model(backbone, "gap", 7).get_classifier().in_features
    images = torch.randn(2, 3, size, size)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert model.get_classifier().in_features == (1 if max_logits else 3) * width
    assert model.attention(images).shape[:2] == (2, 3)
    before = model.forward_head(model.forward_features(images), pre_logits=True)
    if max_logits:
        each = model.get_classifier()(before.unflatten(1, (3, -1)))
        torch.testing.assert_close(logits, each.amax(1))
    else:
        torch.testing.assert_close(logits, model.get_classifier()(before))
    model.reset_classifier(4)
    assert model(images).shape == (2, 4)
    replace_pooling(model, "simpool")
    assert model(images).shape == (2, 4)
    assert model.get_classifier().in_features == width


def test_images_that_are_not_square():
    model = create_model("vit_tiny_patch16_224", "simpool", 10, img_size=(64, 32))
    assert model.attention(torch.randn(1, 3, 64, 32)).shape == (1, 1, 4, 2)


@pytest.mark.parametrize(("backbone", "pixels"), [("vit_micro", 48), ("vit_small_patch14_reg4_dinov2", 56)])
def test_class_token_attention(backbone, pixels):
    """Against the softmax of the last block's own queries and keys, registers and the token itself left out."""
    torch.manual_seed(0)
    model = create_model(backbone, "cls", 10, img_size=pixels).eval()
    images = torch.randn(2, 3, pixels, pixels)
    seen = []
    block = model.blocks[-1]
    with block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        logits = model(images)
    heads, attn = block.attn.num_heads, block.attn
    q, k, _ = attn.qkv(seen[0]).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q[:, :, 0:1] @ k.mT * attn.scale).softmax(-1)[:, :, 0, model.num_prefix_tokens :]
    expected = weights / weights.sum(-1, keepdim=True)
    maps = model.attention(images)
    torch.testing.assert_close(maps.flatten(2), expected)
    torch.testing.assert_close(model(images), logits)  # nothing is left changed
    assert attn.fused_attn


def test_vit_micro_has_a_class_token_only_for_cls():
    assert create_model("vit_micro", "cls", 10).cls_token is not None
    assert create_model("vit_micro", "gap", 10).cls_token is None


def test_the_papers_vit():
    """Parameters and positions of the paper's ViT-S with SimPool."""
    model = create_model("vit_small_patch16_224", "simpool")
    assert sum(p.numel() for p in model.parameters()) == 22_345_576
    assert model.pos_embed.shape == (1, 196, 384) and model.cls_token is None
    images = torch.randn(1, 3, 224, 224)
    assert model.forward_features(images).shape == (1, 196, 384)
    assert model.attention(images).shape == (1, 1, 14, 14)


TINY = {"num_classes": 3, "img_size": 64}


@pytest.mark.parametrize(
    ("backbone", "pool", "kwargs", "class_token", "prefix"),
    [
        ("vit_tiny_patch16_224", "gap", {}, False, 0),
        ("vit_tiny_patch16_224", "gap", {"class_token": True}, True, 1),
        ("vit_tiny_patch16_224", "gap", {"global_pool": "token"}, True, 1),
        ("vit_tiny_patch16_224", "cls", {}, True, 1),
        ("vit_tiny_patch16_224", "ablated_simpool", {"pool_kwargs": {"init": "cls"}}, True, 1),
        ("deit_tiny_patch16_224", "gap", {}, False, 0),
        ("deit3_small_patch16_224", "gap", {}, False, 0),
        ("eva02_tiny_patch14_224", "gap", {"img_size": 56}, False, 0),
        ("vit_small_patch14_reg4_dinov2", "gap", {"img_size": 56}, False, 4),  # registers stay
        # Classes that cannot be made without one are left alone.
        ("deit_tiny_distilled_patch16_224", "gap", {}, True, 2),
        ("beit_base_patch16_224", "gap", {"img_size": 224}, True, 1),
        ("swin_tiny_patch4_window7_224", "gap", {"img_size": 224}, False, 0),
        ("vit_micro", "gap", {"img_size": 48}, False, 0),
        ("vit_micro", "gap", {"img_size": 48, "class_token": True}, True, 1),
    ],
)
def test_class_token_only_where_it_is_needed(backbone, pool, kwargs, class_token, prefix):
    model = create_model(backbone, pool, **TINY | kwargs)
    assert (getattr(model, "cls_token", None) is not None) is class_token
    assert getattr(model, "num_prefix_tokens", 0) == prefix


def test_without_a_class_token_it_is_timms_model():
    """The same logits as timm's own ViT that averages, with its norm in the order that norm_first asks for."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "img_size": 64, "class_token": False, "global_pool": "avg"}
    plain = timm.create_model("vit_tiny_patch16_224", **options).eval()
    images = torch.randn(2, 3, 64, 64)
    ours = create_model("vit_tiny_patch16_224", "gap", 3, img_size=64, norm_first=False).eval()
    state = {k.replace("fc_norm", "pooled_norm"): v for k, v in plain.state_dict().items()}
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(images), plain(images))


def test_pretrained_weights_keep_their_class_token(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    options = {"img_size": 64, "depth": 1, "pretrained": True}
    options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 3}
    model = create_model("vit_tiny_patch16_224", "gap", 3, **options)
    torch.testing.assert_close(model.state_dict(), source.state_dict())
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    torch.testing.assert_close(loaded.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="cls_token"):  # timm's filter does not drop the token: no other choice
        create_model("vit_tiny_patch16_224", "gap", 3, class_token=False, global_pool="avg", **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_model("vit_micro", "simpool", 3),
        lambda: create_model("vit_micro", "cls", 3),
        lambda: create_model("resnet18", "otk", 3, pool_kwargs={"k": 2, "reduce": "concat"}),
        lambda: replace_pooling(timm.create_model("convnet_micro", num_classes=3), "simpool"),
        lambda: replace_pooling(create_model("vit_micro", "cls", 3), "gap"),
    ],
)
def test_pickle(make):
    """Whole models, as torch.save(model) and a spawned process need them."""
    model, images, buffer = make().eval(), torch.randn(2, 3, 48, 48), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), torch.load(buffer, weights_only=False)]
    for copied in copies:
        assert type(copied) is type(model)
        torch.testing.assert_close(copied(images), model(images))
        torch.testing.assert_close(copied.attention(images), model.attention(images))
        replace_pooling(copied, "max")  # of its own: the model keeps its pooling
    assert str(model) == str(make())


@pytest.mark.parametrize("backbone", ["vit_micro", "convnet_micro"])
def test_gradients_of_each_image_by_torch_func_and_a_copy_afterwards(backbone):
    model, images = create_model(backbone, "simpool", 3).eval(), torch.randn(2, 3, 48, 48)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, image):
        return functional_call(model, (parameters, buffers), (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    copied = copy.deepcopy(model)
    copied(images[1:]).square().sum().backward()
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(found[name][1], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_pickle_in_a_new_process(tmp_path):
    torch.save(create_model("vit_micro", "simpool", 3), tmp_path / "model.pt")
    code = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False)).__name__)"
    command = [sys.executable, "-c", code, tmp_path / "model.pt"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [
        "PooledVisionTransformer"
    ]


def test_img_size_is_ignored_where_any_size_goes():
    assert create_model("resnet18", "gap", 3, img_size=48)(torch.randn(1, 3, 48, 48)).shape == (1, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_model("resnet18", "cls", 10), ValueError, "pool: 'cls' expects .* got 'resnet18'"),
        (lambda: create_model("vit_micro", "cls", 10, pool_kwargs={"gamma": 2}), ValueError, "pool_kwargs: .*no arg"),
        (lambda: create_model("resnet1", "gap", 10), ValueError, "backbone: expected .* got 'resnet1'"),
        (lambda: create_model("resnet_50", "gap", 10), ValueError, "got 'resnet_50'; did you mean 'resnet50'"),
        (lambda: create_model("vit_mikro", "gap", 10), ValueError, "got 'vit_mikro'; did you mean 'vit_micro'"),
        (lambda: create_model("zzzzzzzzzzz", "gap", 10), ValueError, r"timm.list_models\(\)"),
        *(
            (partial(create_model, "resnet18", "gap", value), ValueError, f"num_classes: .* at least 0, got {value!r}")
            for value in (-1, None, "10", True, 2.5)
        ),
        *(
            (partial(create_model, "resnet18", in_chans=value), ValueError, f"in_chans: .* at least 1, got {value!r}")
            for value in (0, -3, "3", True)
        ),
        *(
            (partial(create_model, "vit_tiny_patch16_224", img_size=value), ValueError, "img_size: expected ")
            for value in (-48, -5, 0, 50, 15, "48", 48.0, (48,), (48, 50), (48, -48), True)
        ),
        *(
            (partial(create_model, backbone, img_size=value), ValueError, "img_size: expected ")
            for backbone, value in (
                ("resnet18", -48),
                ("vit_micro", 50),
                ("vit_micro", -48),
                ("swin_tiny_patch4_window7_224", 50),
                ("beit_base_patch16_224", 50),
            )
        ),
        (lambda: create_model("vit_tiny_patch16_224", "cls", img_size=50), ValueError, "img_size: .*16"),
        (lambda: create_model("resnet18", "simpool", pool_kwargs="gamma=2"), TypeError, "pool_kwargs: expected a dict"),
        (lambda: create_model("resnet18", "simpool", pool_kwargs=["k"]), TypeError, "pool_kwargs: expected a dict"),
        (lambda: create_model("vit_micro", norm_first="no"), TypeError, "norm_first: expected True or False, got 'no'"),
        (lambda: create_model("vit_micro", max_logits=1), TypeError, "max_logits: expected True or False, got 1"),
        (lambda: create_model("resnet18", pretrained="yes"), ValueError, "pretrained: expected True or False"),
        (lambda: create_model("resnet18", "average", 10), ValueError, "pool: expected one of gap.* got 'average'"),
        (lambda: create_model("vit_micro", "gap", 10, pretrained=True), ValueError, "pretrained: .*no published"),
        (lambda: create_model(None, "gap", 10), TypeError, "backbone: expected the name"),
        (lambda: replace_pooling(torch.nn.Linear(2, 2), "gap"), TypeError, "model: expected a timm .* got Linear"),
        (
            lambda: create_model("convnet_micro", "kmeans", 10, max_logits=True),
            ValueError,
            "max_logits: expected several vectors, got one from 'kmeans'",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (Image.new("RGB", (48, 48)), TypeError, "images: expected a floating-point tensor .* got Image"),
        (np.zeros((1, 3, 48, 48), dtype=np.float32), TypeError, "images: .* got ndarray"),
        ([torch.zeros(3, 48, 48)], TypeError, "images: .* got list"),
        (None, TypeError, "images: .* got NoneType"),
        (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), TypeError, "images: .* got torch.uint8"),
        (torch.zeros(3, 48, 48), ValueError, r"images: expected a batch .* got shape \(3, 48, 48\); images\[None\]"),
        (torch.zeros(48, 48), ValueError, r"images: expected a batch .* got shape \(48, 48\)"),
        (torch.zeros(1, 3, 40, 40), ValueError, r"images: expected \(48, 48\) pixels .* got \(40, 40\)"),
    ],
)
@pytest.mark.parametrize("pool", ["simpool", "cls"])
def test_attention_of_what_is_no_batch_of_images(images, error, message, pool):
    with pytest.raises(error, match=message):
        create_model("vit_micro", pool, 2).attention(images)


@pytest.mark.parametrize(
    ("backbone", "pool", "kwargs"),
    [
        ("vit_micro", "cls", {}),
        ("vit_micro", "simpool", {"pool_kwargs": {"gamma": 1.25}, "norm_first": False}),
        ("convnet_micro", "gap", {"drop_rate": 0.1}),
        ("convnet_micro", "slot", {"pool_kwargs": {"reduce": "concat"}}),
        (
            "vit_micro",
            "ablated_simpool",
            {"pool_kwargs": {"init": "kmeans", "k": 2, "reduce": "concat"}, "max_logits": True},
        ),
    ],
)
def test_checkpoint_round_trip(tmp_path, backbone, pool, kwargs):
    model = create_model(backbone, pool, 7, **kwargs).eval()
    path = save_model(model, tmp_path / "new" / "model.safetensors")
    images = torch.randn(2, 3, 48, 48)
    loaded = load_model(path)
    assert type(loaded) is type(model) and not loaded.training
    assert torch.equal(loaded(images), model(images))
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_checkpoint_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: expected a file of save_model"):
        load_model(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"path: .* has no configuration"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(TypeError, match=r"model: expected a model of create_model\(\), got Linear"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "linear.safetensors")


def test_timm_makes_our_models_by_name():
    model = timm.create_model("vit_micro_simpool", num_classes=5, pool_kwargs={"gamma": 2.0}).eval()
    assert model.pooling.gamma == 2.0 and model(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    assert {f"resnet50_{pool}" for pool in list_pools()} <= set(timm.list_models())


def test_only_importing_the_models_registers_them():
    """In a process of its own, since they are imported in this one."""
    code = (
        "import sys, simpool_lite\n"
        "assert 'timm' not in sys.modules and not any('simpool' in type(f).__module__ for f in sys.meta_path)\n"
        "import timm, simpool_lite.models\n"
        "assert timm.create_model('resnet50_simpool', num_classes=2).pooling.dim == 2048\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pretrained_weights_offline(tmp_path):
    code = (
        "from simpool_lite import create_model\n"
        "try:\n    create_model('resnet18', 'simpool', 10, pretrained=True)\n"
        "except FileNotFoundError as error:\n    assert str(error).startswith('pretrained: the weights of')\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=offline)
