"""Put a pooling where a timm model has its own.

timm's models share one contract: ``forward`` is ``forward_head(forward_features(x))``, and the head begins
with some average over positions. So the pooled vector is handed to the model's own head as a feature map
with one position, which every average leaves as it is, and all that follows the pooling (a norm, an MLP,
MobileNetV3's 1 x 1 convolution, the classifier) stays in place for every architecture. A pooling that gives k
vectors hands them over as k images, and what the head makes of them is joined at the classifier.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from timm.layers import LayerNorm2d, LayerNorm2dFp32
from torch import Tensor, nn

from ..checks import check_bool, check_int
from ..pooling import create_pool
from ..pooling.base import check_pool


class ChangedModel:
    """A timm model whose class is made when the model is changed: how it is pickled, and what it records.

    ``create_config``, if :func:`~simpool_lite.create_model` made the model, follows what is changed later.
    """

    def __reduce_ex__(self, protocol: int) -> tuple:
        state = self.__getstate__()
        # What a transform of torch.func leaves behind is no tensor any more once it has ended, and cannot be copied.
        last = state.get("last_attention")
        if last is not None and torch._C._functorch.is_functorch_wrapped_tensor(last):
            state = state | {"last_attention": None}
        return _empty, type(self).__bases__, state

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, **kwargs) -> None:
        num_classes = check_int("num_classes", num_classes, 0)
        pool = {} if global_pool is None else {"global_pool": global_pool}
        super().reset_classifier(num_classes, **pool, **kwargs)
        self._record(num_classes=num_classes, **pool)

    def _record(self, **changes) -> None:
        if hasattr(self, "create_config"):
            self.create_config = self.create_config | changes


class _Resizable:
    def set_input_size(self, img_size: int | tuple[int, int] | None = None, *args, **kwargs) -> None:
        super().set_input_size(img_size, *args, **kwargs)
        if img_size is not None:
            self._record(img_size=img_size)


class PooledMixin(ChangedModel):
    """What :func:`replace_pooling` adds to a timm model's class.

    Attributes:
        pooling: the :class:`~simpool_lite.pooling.Pool`.
        pooled_norm: the trunk's final norm where it is applied to the pooled vector, else the identity.
        num_vectors: how many vectors the pooling gives to the classifier.
        max_logits: whether each is classified and the largest logits are taken, or their concatenation is.
        last_attention: map of the last forward, ``(B, M, H, W)``, detached, or None for a pool without one.
        image_channels: how many channels images have; None where that is not known.
    """

    _image_size = (1, 1)  # tokens of unknown origin (from a file, from forward_intermediates) are taken for a square

    def forward_features(self, x: Tensor, *args, **kwargs) -> Tensor:
        _check_images(self, x)
        self._image_size = tuple(x.shape[-2:])
        return super().forward_features(x, *args, **kwargs)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        features, grid = _positions(self, x, self._image_size)
        prefix = _num_prefix_tokens(self, x)
        if _needs_class_token(self.pooling):
            pooled, attention = self.pooling(torch.cat([x[:, :1], features], 1), return_attention=True)
        else:
            pooled, attention = self.pooling(features, grid=grid, return_attention=True)
        if not torch.compiler.is_exporting():  # an exported program has no attributes to set
            self.last_attention = _detached_map(attention, grid)
        one_position = pooled.reshape(_one_position_shape(self, x)).to(x.dtype)
        # A head may read a prefix token or average the patches: it finds the pooled vector in both places.
        one_position = one_position.expand(-1, 1 + prefix, -1) if x.ndim == 3 else one_position
        one_position = _normalise(self.pooled_norm, one_position)
        if self.num_vectors == 1:
            return super().forward_head(one_position, pre_logits=pre_logits)
        if self.max_logits and not pre_logits:
            return super().forward_head(one_position).unflatten(0, (-1, self.num_vectors)).amax(1)
        vectors = super().forward_head(one_position, pre_logits=True)
        joined = vectors.reshape(x.shape[0], -1)
        return joined if pre_logits else self.get_classifier()(joined)

    def reset_classifier(self, num_classes: int, *args, **kwargs) -> None:
        super().reset_classifier(num_classes, *args, **kwargs)
        _fit_classifier(self, vectors_before=1)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """The pooling's attention maps ``(B, M, H, W)`` of images ``(B, 3, h, w)``, in evaluation mode.

        Raises:
            TypeError: ``images`` is not a floating-point tensor.
            ValueError: ``images`` has another number of dimensions, channels or pixels than the model takes; the
                model's pooling weighs no positions.
        """
        with _evaluating(self):
            self(images)
        if self.last_attention is None:
            name = type(self.pooling).__name__
            raise ValueError(f"pool: expected a pooling with an attention map, got {name}, which weighs no positions")
        return self.last_attention


class ClassTokenMixin(ChangedModel):
    """What ``pool="cls"`` adds to a timm transformer: the attention of its class token."""

    def forward_features(self, x: Tensor, *args, **kwargs) -> Tensor:
        _check_images(self, x)
        return super().forward_features(x, *args, **kwargs)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """The class token's attention over the patches in the last block, ``(B, heads, H, W)``.

        Attention to the class token itself and to registers is left out, and each map scaled to sum one.
        Evaluation mode; images are ``(B, 3, h, w)``.
        """
        last = [m for m in self.modules() if hasattr(m, "attn_drop") and hasattr(m, "fused_attn")][-1]
        seen: list[Tensor] = []
        hook = last.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        fused, last.fused_attn = last.fused_attn, False  # the fused kernel never shows its weights
        try:
            with _evaluating(self):
                self(images)
        finally:
            hook.remove()
            last.fused_attn = fused
        attention = seen[0][:, :, 0, self.num_prefix_tokens :]  # query 0 is the class token
        grid = _grid(attention.shape[-1], tuple(images.shape[-2:]))
        return (attention / attention.sum(-1, keepdim=True)).unflatten(-1, grid)


def replace_pooling(
    model: nn.Module, pool: str, *, norm_first: bool = True, max_logits: bool = False, **pool_kwargs
) -> nn.Module:
    """Replace a timm model's pooling, in place.

    Everything after the pooling stays; prefix tokens (CLS, registers) are not pooled. A pooling into k vectors
    that are not reduced (``k=3, reduce="concat"``) gets a classifier of k times the width.

    Args:
        model: a timm classification model, ConvNet or transformer; NCHW, NHWC or token features.
        pool: one of :func:`~simpool_lite.list_pools`, of any family.
        norm_first: a transformer's final norm comes before the pooling (the published supervised order);
            False applies it to the pooled vector (the published DINO order). Where a pooling is replaced a second
            time the order stays as it was.
        max_logits: keep the classifier instead, apply it to each of the k vectors and take the largest logit
            of each class (the paper's way for k > 1).
        **pool_kwargs: arguments of the pooling.

    Returns:
        The same model, with ``last_attention`` (the map of its last forward, ``(B, M, H, W)``) and
        ``attention(images)``.

    Raises:
        TypeError: ``model`` is not a timm classification model; ``norm_first`` or ``max_logits`` is not a bool.
        ValueError: the model has no features ``(B, N, d)`` or ``(B, d, H, W)`` of patches (several branches, tokens
            of other kinds among the patches), the message says what it lacks;
            see :func:`~simpool_lite.create_pool`; the pooling needs a class token and the model has
            none; ``max_logits`` with one vector; k vectors and a classifier that is not linear.
    """
    return change_pooling(model, pool, norm_first, max_logits, pool_kwargs)


def change_pooling(
    model: nn.Module,
    pool: str,
    norm_first: bool,
    max_logits: bool,
    pool_kwargs: dict,
    img_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """:func:`replace_pooling`, for images of so many pixels; None looks for the size in the model.

    The change is tried on a copy without memory first, so a model that is refused stays as it was.
    """
    if not all(hasattr(model, name) for name in ("forward_features", "forward_head", "num_features")):
        raise TypeError(
            "model: expected a timm classification model (forward_features, forward_head, num_features), "
            f"got {type(model).__name__}"
        )
    check_pool("pool", pool)
    check_bool("norm_first", norm_first)
    check_bool("max_logits", max_logits)
    _check_place(model, pool, max_logits, pool_kwargs)
    with torch.device("meta"):
        twin = meta_copy(model)
        _put(twin, pool, norm_first, max_logits, pool_kwargs)
        for images in _inputs(model, img_size):
            if (lack := _lack(twin, images)) is None:
                break
            # What the model cannot take as it comes is another's input, and says nothing about it.
            if _lack(meta_copy(model), images) is None:
                raise ValueError(f"model: expected one that can have another pooling, got {name_of(model)}: {lack}")
        else:
            images = None
    _put(model, pool, norm_first, max_logits, pool_kwargs)
    model.image_channels = None if images is None else images.shape[1]
    return model


def _check_place(model: nn.Module, pool: str, max_logits: bool, pool_kwargs: dict) -> None:
    """Raise for a pooling that does not fit the model."""
    with torch.device("meta"):
        pooling = create_pool(pool, model.num_features, **pool_kwargs)
    if max_logits and pooling.out_dim == model.num_features:
        raise ValueError(
            f'max_logits: expected several vectors, got one from {pool!r} with {pool_kwargs}; use reduce="concat"'
        )
    if _needs_class_token(pooling) and getattr(model, "cls_token", None) is None:
        raise ValueError(
            f"pool_kwargs: init='cls' expects a model with a class token, got {name_of(model)} without; "
            "use another init or a transformer with one"
        )


def _put(model: nn.Module, pool: str, norm_first: bool, max_logits: bool, pool_kwargs: dict) -> None:
    """Put the pooling into the model."""
    pooling = create_pool(pool, model.num_features, **pool_kwargs)
    vectors_before = 1
    if isinstance(model, PooledMixin):
        vectors_before = 1 if model.max_logits else model.num_vectors
    model.num_vectors, model.max_logits = pooling.out_dim // model.num_features, max_logits
    _fit_classifier(model, vectors_before)
    changes = {"pool": pool, "pool_kwargs": pool_kwargs, "max_logits": max_logits}
    if isinstance(model, PooledMixin):
        model.pooling = pooling.to(_device(model))
        model._record(**changes)
        return
    if getattr(model, "attn_pool", None) is not None:  # timm's own attention pooling gives way
        model.attn_pool, model.global_pool = None, "avg"
    model.pooling = pooling.to(_device(model))
    model.pooled_norm = _place_final_norm(model, norm_first)
    model.last_attention = None
    timm_class = type(model).__bases__[-1] if isinstance(model, ClassTokenMixin) else type(model)
    model.__class__ = _mixed(PooledMixin, timm_class)
    model._record(**changes, norm_first=norm_first)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device, where a tensor is a shape without memory."""
    tensors = {id(t): nn.Parameter(t.to("meta"), t.requires_grad) for t in model.parameters()}
    tensors |= {id(t): t.to("meta") for t in model.buffers()}
    return copy.deepcopy(model, tensors).eval()


def name_of(model: nn.Module) -> str:
    """The name by which timm knows a model, else its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__


def _inputs(model: nn.Module, img_size: int | tuple[int, int] | None) -> list[Tensor]:
    """Batches of two images that a timm model may have been made for, the likelier first."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size") or (3, 224, 224)
    size = img_size or getattr(getattr(model, "patch_embed", None), "img_size", None) or size
    size = (size, size) if isinstance(size, int) else size
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), channels)
    return [torch.empty(2, number, *size) for number in dict.fromkeys([channels, first])]


@torch.no_grad()
def _lack(twin: nn.Module, images: Tensor) -> str | None:
    """What a model without memory lacks to make logits of images, None if nothing."""
    pooled = []
    if isinstance(twin, PooledMixin):
        twin.pooling.register_forward_pre_hook(lambda *call: pooled.append(call), with_kwargs=True)
    try:
        logits = twin(images)
    except Exception as error:  # whatever an architecture makes of it
        return str(error).partition("\n")[0]
    if isinstance(twin, PooledMixin) and not pooled:
        return "its forward is not forward_head(forward_features(images))"
    for _, (x,), options in pooled:
        if x.ndim == 3 and options.get("grid", "unknown") is None:
            return (
                f"its features are expected to be a grid of patches, got {x.shape[1]} tokens that are not all patches"
            )
    if not isinstance(logits, Tensor) or logits.shape[:1] != images.shape[:1] or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return f"its logits are expected to have a shape (B, num_classes), got {shape} for a batch of {len(images)}"
    return None


def keep_class_token(model: nn.Module, backbone: str) -> nn.Module:
    """Give a timm transformer with a class token its ``attention`` method, in place."""
    if getattr(model, "cls_token", None) is None or getattr(model, "global_pool", "token") != "token":
        raise ValueError(f"pool: 'cls' expects a backbone that pools by a class token, got {backbone!r}")
    model.__class__ = _mixed(ClassTokenMixin, type(model))
    return model


@cache
def _mixed(mixin: type, cls: type) -> type:
    resizable = (_Resizable,) if hasattr(cls, "set_input_size") else ()
    return type(f"{mixin.__name__.removesuffix('Mixin')}{cls.__name__}", (mixin, *resizable, cls), {})


def _empty(mixin: type, *bases: type) -> nn.Module:
    """An object of a class made by :func:`_mixed`, for pickle to fill."""
    cls = _mixed(mixin, bases[-1])
    return cls.__new__(cls)


def _check_images(model: nn.Module, images: Tensor) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # where sizes are symbols
        return
    if not isinstance(images, Tensor) or not images.is_floating_point():
        came = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images: expected a floating-point tensor (B, 3, h, w), got {came}; timm.data.create_transform() makes "
            "one (3, h, w) of a PIL image"
        )
    if images.ndim != 4:
        raise ValueError(
            f"images: expected a batch (B, 3, h, w), got shape {tuple(images.shape)}; images[None] is a batch of one"
        )
    channels = getattr(model, "image_channels", None)
    if channels is not None and images.shape[1] != channels:
        raise ValueError(
            f"images: expected {channels} channels (B, {channels}, h, w), got shape {tuple(images.shape)}; "
            "create_model makes a model of another number with in_chans"
        )
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    strict = getattr(patches, "strict_img_size", False) and not getattr(patches, "dynamic_img_pad", False)
    if strict and size is not None and tuple(images.shape[-2:]) != tuple(size):
        raise ValueError(
            f"images: expected {tuple(size)} pixels (img_size), got {tuple(images.shape[-2:])}; resize them, or make "
            "the model with another img_size"
        )


def _positions(model: nn.Module, x: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int] | None]:
    """What is pooled of a model's features: tokens ``(B, N, d)`` and their grid, or maps ``(B, d, H, W)`` and None."""
    if not isinstance(x, Tensor):
        came = f"a {type(x).__name__} of {len(x)}" if isinstance(x, list | tuple) else f"a {type(x).__name__}"
        raise ValueError(f"its features are expected to be one tensor, got {came}")
    if x.ndim == 4:
        return (x.permute(0, 3, 1, 2) if _is_nhwc(model, x) else x), None
    if x.ndim != 3:
        raise ValueError(
            f"its features are expected to have a shape (B, N, d) or (B, d, H, W), got {tuple(x.shape)}, without "
            "positions"
        )
    prefix = _num_prefix_tokens(model, x)
    if x.shape[1] <= prefix:
        raise ValueError(f"its features are expected to hold patches, got {x.shape[1]} tokens that are none")
    return x[:, prefix:], _grid(x.shape[1] - prefix, image_size)


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    if x.ndim == 4 and isinstance(norm, nn.LayerNorm) and not isinstance(norm, LayerNorm2d | LayerNorm2dFp32):
        channels_last = x.shape[-1] == norm.normalized_shape[0] != x.shape[1]
        return norm(x) if channels_last else norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return norm(x)


def _place_final_norm(model: nn.Module, norm_first: bool) -> nn.Module:
    """Put a transformer's final norm before or after the pooling; returns what is applied to the vector."""
    trunk, head = getattr(model, "norm", None), getattr(model, "fc_norm", None)
    if isinstance(trunk, nn.Identity) and isinstance(head, nn.Module):
        trunk, head = head, trunk  # timm moves the norm into the head of models that average
        model.fc_norm = head
        model.norm = trunk
    if norm_first or not isinstance(trunk, nn.Module):
        return nn.Identity()
    model.norm = nn.Identity()
    return trunk


def _fit_classifier(model: nn.Module, vectors_before: int) -> None:
    """Make the classifier take all vectors that it is given at once; it took ``vectors_before``."""
    vectors = 1 if model.max_logits else model.num_vectors
    if vectors == vectors_before or model.num_classes == 0:  # timm: some models without classes have no classifier
        return
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"pool_kwargs: {vectors} vectors expect a classifier that is one linear layer, got "
            f"{type(classifier).__name__} in {name_of(model)}; use another reduce, or max_logits"
        )
    name = next(name for name, module in model.named_modules() if module is classifier)
    wide = nn.Linear(
        classifier.in_features // vectors_before * vectors,
        classifier.out_features,
        bias=classifier.bias is not None,
        device=classifier.weight.device,
        dtype=classifier.weight.dtype,
    )
    model.set_submodule(name, wide)


def _needs_class_token(pooling: nn.Module) -> bool:
    return getattr(pooling, "needs_class_token", False)


def _num_prefix_tokens(model: nn.Module, x: Tensor) -> int:
    """How many of a model's tokens come before those of the patches; a map ``(B, d, H, W)`` has none."""
    class_tokens = getattr(model, "cls_token", None)  # (1, 1, d); (1, 2, d) with one for distillation
    known = getattr(model, "num_prefix_tokens", 0 if class_tokens is None else class_tokens.shape[-2])
    return known if x.ndim == 3 else 0


def _is_nhwc(model: nn.Module, x: Tensor) -> bool:
    return x.shape[-1] == model.num_features and x.shape[1] != model.num_features


def _one_position_shape(model: nn.Module, x: Tensor) -> tuple[int, ...]:
    width = model.num_features
    if x.ndim == 3:
        return (-1, 1, width)
    return (-1, 1, 1, width) if _is_nhwc(model, x) else (-1, width, 1, 1)


def _grid(positions: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid ``(H, W)`` of that many patches with the image's proportions, None if there is none."""
    height = max(1, round((positions * image_size[0] / image_size[1]) ** 0.5))
    return (height, positions // height) if positions % height == 0 else None


def _detached_map(attention: Tensor | None, grid: tuple[int, int] | None) -> Tensor | None:
    if attention is None:
        return None
    attention = attention.detach()
    return attention if grid is None else attention.unflatten(-1, grid)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def patch_features(model: nn.Module, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What a timm model's pooling gets: tokens ``(B, N, d)`` without CLS and registers, and their grid (H, W)."""
    _check_images(model, images)
    with _evaluating(model):
        x = model.forward_features(images)
    try:
        features, grid = _positions(model, x, tuple(images.shape[-2:]))
    except ValueError as error:
        raise ValueError(f"model: expected one with one feature per patch, got {name_of(model)}: {error}") from error
    return (features, grid) if x.ndim == 3 else (features.flatten(2).mT, tuple(features.shape[-2:]))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
