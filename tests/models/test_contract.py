"""What a timm model must offer to have its pooling replaced, and what is said of one that does not."""

import pytest
import timm
import torch

from simpool_lite import create_model, replace_pooling
from simpool_lite.models import patch_features

LACKING = {
    "coat_tiny": "one tensor, got a list",
    "crossvit_tiny_240": "one tensor, got a list",
    "efficientvim_m1": "one tensor, got a",
    "pit_xs_224": "patches, got 1 tokens",
    "pit_ti_distilled_224": "patches, got 2 tokens",
    "coat_lite_tiny": "grid of patches, got 50 tokens",
}


@pytest.mark.parametrize("backbone", LACKING)
def test_a_model_that_cannot_is_refused_by_name(backbone):
    with torch.device("meta"), pytest.raises(ValueError, match=f"{backbone}.*{LACKING[backbone]}"):
        create_model(backbone, "simpool", 10)


def test_a_refused_model_stays_as_it_was():
    with torch.device("meta"):
        model = timm.create_model("pit_xs_224", num_classes=10).eval()
        with pytest.raises(ValueError, match="pit_xs_224"):
            replace_pooling(model, "simpool")
        assert not hasattr(model, "pooling") and type(model).__name__ == "PoolingVisionTransformer"
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize("backbone", ["levit_128s", "efficientformer_l1", "convformer_s18", "dla34"])
def test_several_vectors_need_a_linear_classifier(backbone):
    arguments = {"pool_kwargs": {"k": 3, "reduce": "concat"}}
    with torch.device("meta"):
        with pytest.raises(ValueError, match=rf"one linear layer, got \w+ in {backbone}"):
            create_model(backbone, "slot", 10, **arguments)
        model = create_model(backbone, "slot", 10, max_logits=True, **arguments).eval()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 10)


def test_a_model_without_a_classifier_gives_features():
    with torch.device("meta"):
        model = create_model("efficientvit_m0", "simpool", 10).eval()
        model.reset_classifier(0)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 192)


def test_a_norm_over_channels_of_a_map_moves_behind_the_pooling():
    """nest normalises (B, H, W, d) and hands on (B, d, H, W): the same norm, of the pooled vector."""
    torch.manual_seed(0)
    model = create_model("nest_tiny_jx", "gap", 10, norm_first=False).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.head(model.pooled_norm(model.forward_features(images).mean((2, 3))))
        torch.testing.assert_close(model(images), expected)


def test_the_generator_is_not_touched_by_the_trial():
    drawn = []
    for make in (lambda: timm.create_model("vit_micro", class_token=False, global_pool="avg"), None):
        torch.manual_seed(0)
        model = make() if make else create_model("vit_micro", "gap")
        drawn.append((model.pos_embed.detach(), torch.rand(3)))
    for before, after in zip(*drawn, strict=True):
        assert torch.equal(before, after)


def test_intermediate_features_of_the_small_transformer():
    model = create_model("vit_micro", "simpool", 4).eval()
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model.forward_head(model.forward_intermediates(images)[0]), model(images))


@pytest.mark.parametrize("backbone", ["vit_micro", "convnet_micro"])
def test_images_are_checked_wherever_they_come_in(backbone):
    model = create_model(backbone, "simpool", 4).eval()
    for call in (model, model.attention, lambda images: patch_features(model, images)):
        for images, error, said in (
            (None, TypeError, "got NoneType"),
            (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), TypeError, "got torch.uint8"),
            (torch.zeros(3, 48, 48), ValueError, r"got shape \(3, 48, 48\); images\[None\]"),
            (torch.zeros(1, 1, 48, 48), ValueError, r"3 channels .* got shape \(1, 1, 48, 48\)"),
        ):
            with pytest.raises(error, match=f"^images: expected .*{said}"):
                call(images)


def test_grey_images_and_their_number_of_channels():
    model = create_model("convnet_micro", "simpool", 4, in_chans=1).eval()
    assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 4)
    replaced = replace_pooling(timm.create_model("test_resnet", in_chans=1), "simpool").eval()
    assert replaced(torch.zeros(1, 1, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match="expected 1 channels"):
        replaced(torch.zeros(1, 3, 64, 64))
