"""What the explorer shows: from an image, a network and a kind of map to pictures and scores.

Nothing here knows of widgets or a browser; :mod:`simpool_lite.figures.page` is the page around it.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..checks import check_number
from ..datasets.images import open_image, to_rgb
from ..datasets.photo_digits import PHOTOS, PhotoDigits, photograph_folder
from ..experiments.store import Store, recorded_results
from ..measure.maps import attention_maps
from ..models import create_model, load_model
from .show import SHOWN_PIXELS, largest_region, model_input
from .style import colour_of

DIGITS = 12  # test images of photo-digits on offer
KEPT = 64  # answers that are kept, each of a network, an image, a kind and a block
POOLINGS = {"cls": "CLS", "gap": "GAP", "gem": "GeM", "simpool": "SimPool"}
OWN_MAP = {"CLS": "cls", "GAP": "cam", "GeM": "gradcam"}  # the map that tells most of it; a pooling's own of all others
STROKE = 0.1  # width of a drawn line, as in photo-digits, in shares of the picture's side
BACKGROUND = 80  # pixels of a photograph behind a drawn digit, near the middle of what photo-digits takes


@dataclass(frozen=True)
class Network:
    """A trained network that the explorer offers.

    Args:
        backbone, pooling: its names on the page.
        load: makes it; called once, when it is first chosen.
        classes: names of its logits.
        gamma: the exponent that it was trained with, or None.
        images: options of photo-digits, if it was trained on them: its test images are drawn at that size.
    """

    backbone: str
    pooling: str
    load: Callable[[], nn.Module] = field(repr=False)
    classes: Sequence[str] = field(repr=False)
    gamma: float | None = None
    images: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Where the page's controls stand.

    Args:
        image: a name of :attr:`Explorer.images`.
        backbone, pooling, gamma: which network. Each gamma is a network of its own, trained with it.
        kind: of map, see :func:`simpool_lite.measure.maps.attention_maps`; None is the one that tells
            most of the network: SimPool's own, the class token's, CAM for GAP, Grad-CAM for GeM.
        block: of the kind "cls", counted from 0; None is the last.
        head: of a kind with several maps, counted from 0; None is their mean.
        threshold: of the box, a share of the map's maximum, above 0 and at most 1.
    """

    image: str = "photo-digits 0"
    backbone: str = "convnet_micro"
    pooling: str = "SimPool"
    gamma: float | None = None
    kind: str | None = None
    block: int | None = None
    head: int | None = None
    threshold: float = 0.2


@dataclass(frozen=True)
class Answer:
    """What a network makes of an image.

    Attributes:
        state: the question.
        photograph: RGB, as the reader gave it; coordinates below are its pixels.
        crop: what the network was given of it, x0 y0 x1 y1.
        map: ``(H, W)`` over the crop, as the kind defines its values.
        box: x0 y0 x1 y1 around the largest region of at least the threshold; None where no value is above 0.
        scores: softmax over the classes, ``(n,)``.
        classes: their names.
    """

    state: State
    photograph: Image.Image
    crop: tuple[float, float, float, float]
    map: Tensor
    box: tuple[float, float, float, float] | None
    scores: Tensor
    classes: Sequence[str]

    def best(self, number: int = 5) -> list[tuple[str, float]]:
        """The classes with the highest scores, best first, and these scores."""
        values, places = self.scores.topk(min(number, len(self.scores)))
        return [(self.classes[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]

    def pictures(self, side: int = 320) -> tuple[Image.Image, Image.Image]:
        """The photograph, a white frame around the crop if that is not all of it; and the map over it, with the box.

        Drawn as :func:`simpool_lite.figures.show_attention` does, ``side`` pixels along the longer side.
        """
        width, height = self.photograph.size
        scale = side / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = self.photograph.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
        x0, y0, x1, y1 = (round(scale * edge) for edge in self.crop)
        grey = np.asarray(shown.convert("L").convert("RGB"), dtype=np.float32)
        greatest = max(self.map.max().item(), 0.0) or 1.0
        colours = mpl.colormaps["inferno"]((self.map / greatest).clamp(0, 1).numpy(), bytes=True)[..., :3]
        colours = Image.fromarray(colours).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST)
        grey[y0:y1, x0:x1] = 0.25 * grey[y0:y1, x0:x1] + 0.75 * np.asarray(colours)
        over = Image.fromarray(np.rint(grey).astype(np.uint8))
        if self.box is not None:
            _frame(over, [scale * edge for edge in self.box], "cyan")
        if (x0, y0, x1, y1) != (0, 0, *size):
            _frame(shown, [x0, y0, x1, y1], "white")
        return shown, over


class Explorer:
    """Answers to the states of a page; what was computed once is kept.

    A network runs once per image, kind and block. Moving the threshold or choosing a head does not run it again.

    Args:
        networks: what there is to choose from; by default :func:`default_networks`.

    >>> explorer = Explorer()
    >>> answer = explorer.answer(State("photo-digits 3", pooling="GAP", kind="cam"))
    >>> answer.map.shape, answer.photograph.size, len(answer.best(3))
    (torch.Size([8, 8]), (32, 32), 3)
    """

    def __init__(self, networks: Sequence[Network] | None = None) -> None:
        networks = default_networks() if networks is None else networks
        if not networks:
            raise ValueError("networks: expected at least one, got none")
        self._networks = {(n.backbone, n.pooling, n.gamma): n for n in networks}
        self._own: dict[str, Image.Image] = {}  # pictures of the reader's
        self._versions: dict[str, int] = {}  # how often each was replaced: an older one's answers no longer count
        self._model = functools.cache(lambda *key: self._networks[key].load().eval())
        self._kinds = functools.cache(self._find_kinds)
        self._look = functools.lru_cache(KEPT)(self._run)
        self._digits = functools.lru_cache(8)(_digit_pictures)

    @property
    def images(self) -> list[str]:
        """The names of the images: test images of photo-digits, photographs, and what was put beside them."""
        return [f"photo-digits {i}" for i in range(DIGITS)] + list(PHOTOS) + list(self._own)

    @property
    def runs(self) -> int:
        """How often a network was run for an answer."""
        return self._look.cache_info().misses

    def put(self, name: str, image: Image.Image) -> None:
        """Add a picture of the reader's, or replace the one of that name.

        Raises:
            ValueError: the name is one of the explorer's own images.
            TypeError: ``image`` is no PIL image.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(f"image: expected a PIL image, got {type(image).__name__}")
        if name in self.images and name not in self._own:
            raise ValueError(f"name: expected another one than those of the explorer's own images, got {name!r}")
        image = to_rgb(image)
        image.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))  # more would only make it slow
        self._own[name] = image
        self._versions[name] = self._versions.get(name, 0) + 1

    def choices(self, state: State) -> dict[str, list]:
        """By the names of :class:`State`'s fields what each can be, given the ones before it.

        Raises:
            ValueError: see :meth:`answer`.
        """
        network = self._network(state)
        keys = list(self._networks)
        kinds, blocks = self._kinds(*_key(network))
        found = {
            "image": self.images,
            "backbone": list(dict.fromkeys(backbone for backbone, _, _ in keys)),
            "pooling": list(dict.fromkeys(p for backbone, p, _ in keys if backbone == state.backbone)),
            "gamma": [gamma for *names, gamma in keys if names == [state.backbone, state.pooling]],
            "kind": list(kinds),
            "block": list(range(blocks)) if state.kind == "cls" else [None],
        }
        _check("image", state.image, found["image"])
        _check("kind", state.kind, found["kind"])
        if state.block is not None:
            _check("block", state.block, found["block"])
        maps = self._maps(state)
        return found | {"head": [None, *range(len(maps))] if len(maps) > 1 else [None]}

    def fit(self, state: State) -> State:
        """The state with what does not exist under the choices before it replaced by the first that does."""
        keys = list(self._networks)
        if state.backbone not in {backbone for backbone, _, _ in keys}:
            state = replace(state, backbone=keys[0][0])
        if state.pooling not in (poolings := [p for backbone, p, _ in keys if backbone == state.backbone]):
            state = replace(state, pooling="SimPool" if "SimPool" in poolings else poolings[0])
        gammas = [gamma for *names, gamma in keys if names == [state.backbone, state.pooling]]
        state = replace(state, gamma=state.gamma if state.gamma in gammas else gammas[0])
        if state.image not in self.images:
            state = replace(state, image=self.images[0])
        kinds, blocks = self._kinds(*_key(self._network(state)))
        state = replace(state, kind=state.kind if state.kind in kinds else kinds[0])
        fits = state.kind == "cls" and state.block is not None and 0 <= state.block < blocks
        state = replace(state, block=state.block if fits else blocks - 1 if state.kind == "cls" else None)
        heads = len(self._maps(state))
        fits = state.head is not None and heads > 1 and 0 <= state.head < heads
        return replace(state, head=state.head if fits else None)

    def answer(self, state: State) -> Answer:
        """Maps, box and scores of a state.

        Raises:
            ValueError: a field of ``state`` has a value that does not exist here; the message names the field and
                what it could be.
        """
        if not 0 < check_number("threshold", state.threshold) <= 1:
            raise ValueError(f"threshold: expected above 0 and at most 1, got {state.threshold!r}")
        if state.kind is None:
            state = replace(state, kind=self._kinds(*_key(self._network(state)))[0][0])
        choices = self.choices(state)
        _check("head", state.head, choices["head"])
        photograph, crop, maps, scores = self._seen(state)
        chosen = maps.mean(0) if state.head is None else maps[state.head]
        greatest = chosen.max().item()
        box = largest_region(chosen, state.threshold * greatest, crop) if greatest > 0 else None
        return Answer(state, photograph, crop, chosen, box, scores, self._network(state).classes)

    def _network(self, state: State) -> Network:
        key = state.backbone, state.pooling, state.gamma
        if key not in self._networks:
            for place, name in enumerate(("backbone", "pooling", "gamma")):
                _check(
                    name, key[place], list(dict.fromkeys(k[place] for k in self._networks if k[:place] == key[:place]))
                )
        return self._networks[key]

    def _find_kinds(self, *key: object) -> tuple[list[str], int]:
        """The kinds of maps that a network has, the most telling first, and how many blocks it has."""
        model, network = self._model(*key), self._networks[key]
        pixels, _ = model_input(model, Image.new("RGB", (64, 64), "grey"), None)
        kinds = ["gradcam"]  # of every network with a classifier, and slow to try
        for kind in ("cam", "rollout", "cls", "pool"):
            try:
                attention_maps(model, pixels, kind)
            except ValueError:
                continue
            kinds.insert(0, kind)
        if "cls" in kinds and "pool" in kinds:  # the last block's "cls"
            kinds.remove("pool")
        own = OWN_MAP.get(network.pooling, "pool")
        return sorted(kinds, key=lambda kind: kind != own), len(getattr(model, "blocks", ()))

    def _maps(self, state: State) -> Tensor:
        return self._seen(state)[2]

    def _seen(self, state: State) -> tuple[Image.Image, tuple, Tensor, Tensor]:
        block = state.block if state.kind == "cls" else None
        version = self._versions.get(state.image, 0)
        return self._look(_key(self._network(state)), state.image, version, state.kind, block)

    def _run(
        self, key: tuple, image: str, version: int, kind: str, block: int | None
    ) -> tuple[Image.Image, tuple, Tensor, Tensor]:
        """Photograph, crop, maps ``(M, H, W)`` and scores; ``version`` is for the cache alone."""
        model, network = self._model(*key), self._networks[key]
        photograph = self._photograph(image, network)
        pixels, crop = model_input(model, photograph, None)
        options = {"block": block, "each_head": True} if kind == "cls" else {}
        maps = attention_maps(model, pixels, kind, **options)[0].float().cpu()
        with torch.no_grad():
            scores = model(pixels)[0].float().softmax(0).cpu()
        return photograph, crop, maps, scores

    def _photograph(self, name: str, network: Network) -> Image.Image:
        if name in self._own:
            return self._own[name]
        if name in PHOTOS:
            return open_image(photograph_folder() / f"{name}.png")
        return self._digits(json.dumps(dict(network.images), sort_keys=True))[int(name.split()[1])]


def default_networks() -> list[Network]:
    """:func:`recorded_networks`, and EfficientNet-Lite0, which was trained with GAP on photographs of 1,000 classes."""

    def load() -> nn.Module:
        return create_model("tf_efficientnet_lite0", pretrained="efficientnet-lite0")

    return [*recorded_networks(), Network("efficientnet_lite0", "GAP", load, ImageNetInfo().label_descriptions())]


def recorded_networks() -> list[Network]:
    """The recorded networks of seed 0 for photo-digits: CLS, GAP, GeM and SimPool, with each gamma and number of heads.

    Of several with the same names the one of the newest protocol, then of the longest training.
    """
    records = Store(recorded_results()).records()
    records = records[(records.seed == 0) & (records.target == "digit") & (records.status == "ok")]
    records = records[records.pool.isin(POOLINGS) & (records.regime != "head")]
    found: dict[tuple, tuple] = {}
    for record in records.itertuples():
        path = recorded_results() / "models" / f"{record.config_hash}.safetensors"
        config, arguments = json.loads(record.config), json.loads(record.pool_kwargs)
        if not path.is_file() or not arguments.keys() <= {"gamma", "num_heads"}:
            continue
        heads = f", {arguments['num_heads']} heads" if "num_heads" in arguments else ""
        names = record.backbone, POOLINGS[record.pool] + heads, arguments.get("gamma")
        rank = record.protocol, config["epochs"]
        if names not in found or rank > found[names][0]:
            options = {name: value for name, value in config["data_options"].items() if name != "num_images"}
            found[names] = rank, path, options
    order = [*POOLINGS.values()]
    return [
        Network(backbone, pooling, functools.partial(load_model, path), [str(i) for i in range(10)], gamma, options)
        for (backbone, pooling, gamma), (_, path, options) in sorted(
            found.items(),
            key=lambda item: (item[0][0], order.index(item[0][1].split(",")[0]), item[0][1], item[0][2] or 0),
        )
    ]


def draw_digit(
    strokes: Sequence[Sequence[tuple[float, float]]], background: str = "coffee", side: int = 192
) -> Image.Image:
    """A digit drawn by hand on a piece of a photograph, as an image of photo-digits has one.

    Args:
        strokes: of each stroke the points (x, y), from 0 to 1 across and down; lines join them.
        background: one of photo-digits' photographs; the piece comes from the half that nothing was trained on.
        side: of the picture in pixels.

    Returns:
        RGB, ``side`` by ``side``: strokes in white or black, whichever differs more from the background.

    Raises:
        ValueError: an unknown background, or a point outside.

    >>> draw_digit([[(0.5, 0.2), (0.5, 0.8)]]).size
    (192, 192)
    """
    if any(not (0 <= x <= 1 and 0 <= y <= 1) for stroke in strokes for x, y in stroke):
        raise ValueError("strokes: expected points (x, y) from 0 to 1, got some outside; leave them out")
    picture, colour = drawing_ground(background, side)
    fine = 4  # drawn larger and reduced, for smooth edges
    ink = Image.new("L", (fine * side, fine * side))
    draw, width = ImageDraw.Draw(ink), STROKE * fine * side
    for stroke in strokes:
        points = [(fine * side * x, fine * side * y) for x, y in stroke]
        draw.line(points, 255, round(width), joint="curve")
        for x, y in points:  # round ends
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
    picture.paste(colour, (0, 0), ink.reduce(fine))
    return picture


def drawing_ground(background: str, side: int) -> tuple[Image.Image, str]:
    """What a digit is drawn on, a piece of a photograph of ``side`` by ``side`` pixels, and in which colour.

    Raises:
        ValueError: an unknown background.
    """
    _check("background", background, list(PHOTOS))
    photograph = open_image(photograph_folder() / f"{background}.png")
    left, top = (3 * photograph.width - 2 * BACKGROUND) // 4, (photograph.height - BACKGROUND) // 2
    piece = photograph.crop((left, top, left + BACKGROUND, top + BACKGROUND)).resize((side, side))
    return piece, "black" if np.asarray(piece.convert("L")).mean() > 127 else "white"


def explorer_figure(explorer: Explorer, states: Mapping[str, State], number: int = 5) -> Figure:
    """What the page shows of some states, as a figure for paper: one column per state, its name above.

    Args:
        explorer: gives the answers.
        states: by the name above each column.
        number: how many scores are shown.

    Returns:
        Per column the photograph, the map with its box over it, and the highest scores in percent.

    Raises:
        ValueError: no state, or one that :meth:`Explorer.answer` refuses.
    """
    if not states:
        raise ValueError("states: expected at least one, got none")
    figure, axes = plt.subplots(
        3, len(states), figsize=(2.3 * len(states), 6.4), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": [1, 1, 0.75]},
    )  # fmt: skip
    for column, (name, state) in zip(axes.T, states.items(), strict=True):
        answer = explorer.answer(state)
        for axis, picture in zip(column, answer.pictures(), strict=False):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[], frame_on=False)
        column[0].set_title(name, fontsize=10)
        classes, scores = zip(*answer.best(number), strict=True)
        places = range(len(scores))
        bars = column[2].barh(places, [100 * score for score in scores], color=colour_of(state.pooling))
        names = [text.partition(",")[0] for text in classes]  # ImageNet's have synonyms behind a comma
        labels = [f"{text}: {100 * score:.0f} %" for text, score in zip(names, scores, strict=True)]
        column[2].bar_label(bars, labels, padding=3, fontsize=9)  # beside the bar: a long name takes no room from it
        column[2].set(yticks=[], xlim=(0, 220), xticks=[], frame_on=False)
        column[2].grid(False)
        column[2].invert_yaxis()
    return figure


def _key(network: Network) -> tuple[str, str, float | None]:
    return network.backbone, network.pooling, network.gamma


def _check(name: str, value: object, allowed: list) -> None:
    if value not in allowed or isinstance(value, bool):
        raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")


def _digit_pictures(options: str) -> list[Image.Image]:
    data = PhotoDigits("test", **{"num_images": DIGITS} | json.loads(options))
    return [Image.fromarray(image) for image in data.images.permute(0, 2, 3, 1).contiguous().numpy()]


def _frame(picture: Image.Image, box: Sequence[float], colour: str) -> None:
    """A rectangle, 2 pixels wide between black lines, visible on any ground."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    draw = ImageDraw.Draw(picture)
    for inset, ink in ((0, "black"), (1, colour), (2, colour), (3, "black")):
        if x1 - x0 > 2 * inset + 1 and y1 - y0 > 2 * inset + 1:
            draw.rectangle((x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset), outline=ink)
