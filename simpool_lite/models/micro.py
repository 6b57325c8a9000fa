"""Two backbones sized for photo-digits (48 x 48 pixels), registered with timm: a run takes minutes on a CPU."""

from timm.layers import ClassifierHead, ConvNormAct, to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# timm reads a registered model's input size and normalisation from its module's `default_cfgs`.
_DATA = {"input_size": (3, 48, 48), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}
default_cfgs = generate_default_cfgs(
    {
        "convnet_micro": {**_DATA, "first_conv": "stem.conv", "classifier": "head.fc"},
        "vit_micro": {**_DATA, "fixed_input_size": True, "classifier": "head"},
    }
)


class ConvNetMicro(nn.Module):
    """A residual ConvNet of stride 4: ``(B, 3, 48, 48)`` to features ``(B, 96, 12, 12)`` to logits.

    timm's own parts (``ConvNormAct``, ``BasicBlock``, ``ClassifierHead``) in the order of a small ResNet:
    small objects need a fine map, so there are two strides and not five.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        width: int = 24,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 4 * width
        self.stem = ConvNormAct(in_chans, width, 3, stride=2)
        self.stages = nn.Sequential(
            _residual(width, width, stride=1),
            _residual(width, 2 * width, stride=2),
            _residual(2 * width, 4 * width, stride=1),
        )
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _residual(inputs: int, outputs: int, stride: int) -> BasicBlock:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = ConvNormAct(inputs, outputs, 1, stride=stride, apply_act=False)
    return BasicBlock(inputs, outputs, stride=stride, downsample=downsample)


class ConvStem(nn.Module):
    """Patch embedding by three convolutions of stride 2: ``(B, 3, H, W)`` to tokens ``(B, H/8 * W/8, d)``.

    A stem of convolutions instead of one 8 x 8 patch projection lets a ViT this small learn from 4,096
    images (Xiao et al., "Early Convolutions Help Transformers See Better", 2021).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        strict_img_size: bool = True,
        output_fmt: str | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        self.set_input_size(img_size, patch_size)
        self.strict, self.as_grid = strict_img_size, output_fmt == "NHWC"
        self.convs = nn.Sequential(
            ConvNormAct(in_chans, embed_dim // 3, 3, stride=2),
            ConvNormAct(embed_dim // 3, 2 * embed_dim // 3, 3, stride=2),
            ConvNormAct(2 * embed_dim // 3, 2 * embed_dim // 3, 3),
            ConvNormAct(2 * embed_dim // 3, embed_dim, 3, stride=2),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )

    def set_input_size(self, img_size: int | tuple[int, int] | None, patch_size: int | None = None) -> None:
        """What timm's ``VisionTransformer.set_input_size`` calls; None leaves it as it is."""
        img_size = self.img_size if img_size is None else to_2tuple(img_size)
        if patch_size not in (None, 8, (8, 8)) or any(side < 8 or side % 8 for side in img_size):
            raise ValueError(f"img_size: expected a multiple of 8 (patch_size 8), got {img_size}, {patch_size}")
        self.img_size, self.patch_size, self.grid_size = img_size, (8, 8), tuple(side // 8 for side in img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """What timm's ``forward_intermediates`` asks for: the grid of an image."""
        return img_size[0] // 8, img_size[1] // 8

    def forward(self, x: Tensor) -> Tensor:
        if self.strict and x.shape[-2:] != self.img_size:
            raise ValueError(f"images: expected {self.img_size} pixels (img_size), got {tuple(x.shape[-2:])}")
        grid = self.convs(x).permute(0, 2, 3, 1)
        return grid if self.as_grid else grid.flatten(1, 2)  # timm asks for the grid with dynamic_img_size


@register_model
def convnet_micro(pretrained: bool = False, **kwargs) -> ConvNetMicro:
    """A small ConvNet for photo-digits: stride 4, 96 channels, no pretrained weights."""
    _refuse_pretrained("convnet_micro", pretrained)
    return ConvNetMicro(**_own_arguments(kwargs))


@register_model
def vit_micro(pretrained: bool = False, global_pool: str = "avg", **kwargs) -> VisionTransformer:
    """A small ViT for photo-digits: conv stem, 36 tokens, 3 of timm's blocks, width 96, no pretrained weights.

    By default it has a CLS token only where that token is the pooling (``global_pool="token"``).
    """
    _refuse_pretrained("vit_micro", pretrained)
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
    arguments["class_token"] = global_pool == "token"
    return VisionTransformer(
        **arguments | _own_arguments(kwargs),
        embed_layer=ConvStem,
        global_pool=global_pool,
        fc_norm=False,  # the trunk's final norm comes before the pooling, whichever that is
    )


def _own_arguments(kwargs: dict) -> dict:
    # timm's factory adds these for models with pretrained weights.
    return {k: v for k, v in kwargs.items() if k not in {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}}


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ValueError(f"pretrained: {name} has no published weights, expected False; train it, or load_model()")
