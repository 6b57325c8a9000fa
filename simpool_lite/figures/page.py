"""The explorer as a page of widgets, in JupyterLab or Voila; where nobody can use it, as pictures."""

import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from ipycanvas import Canvas, hold_canvas
from IPython import get_ipython
from IPython.display import display
from PIL import Image

from ..datasets.images import open_image
from ..datasets.photo_digits import PHOTOS
from .explorer import STROKE, Answer, Explorer, State, draw_digit, drawing_ground, explorer_figure

UPLOADED, DRAWN = "your picture", "your digit"
CANVAS = 240  # pixels
KINDS = {
    "pool": "the pooling's own",
    "cls": "class token in a block",
    "rollout": "rollout over the blocks",
    "cam": "class activation (CAM)",
    "gradcam": "Grad-CAM",
}
NOTHING = "–"  # of a control that the network does not have


def explore(explorer: Explorer | None = None, states: Mapping[str, State] | None = None) -> None:
    """Show the explorer: a page where somebody can use it, else pictures of ``states``.

    Somebody can use it where the kernel may ask for input, as in JupyterLab, and in Voila. It may not under papermill,
    nbconvert and nbval: there :func:`~simpool_lite.figures.explorer.explorer_figure` is drawn, and no dead controls.

    Args:
        explorer: by default one of the recorded networks.
        states: what is drawn where nobody is; the page starts with the first.

    Raises:
        ValueError: see :meth:`~simpool_lite.figures.explorer.Explorer.answer`.
    """
    explorer = Explorer() if explorer is None else explorer
    states = {"SimPool": explorer.fit(State())} if states is None else states
    if is_interactive():
        display(Page(explorer, next(iter(states.values()))).widget)
    else:
        explorer_figure(explorer, states)
        plt.show()


def is_interactive() -> bool:
    """Whether somebody sits before this kernel: it may ask for input, or Voila runs it, which lets nobody type."""
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True
    request = getattr(get_ipython(), "parent_header", None) or {}
    return bool(request.get("content", {}).get("allow_stdin"))


class Page:
    """The controls and what follows from them.

    JupyterLab lets a kernel handle messages of widgets in a second thread. So one change is finished before the next
    one begins, and each takes over only what the reader has moved.

    Attributes:
        state: where the controls stand.
        widget: what to display.
    """

    def __init__(self, explorer: Explorer, state: State) -> None:
        self.explorer, self.state, self._setting = explorer, explorer.fit(state), False
        self._one_at_a_time = threading.RLock()
        self.controls = {
            "image": _dropdown("image"),
            "backbone": _dropdown("backbone"),
            "pooling": _dropdown("pooling"),
            "gamma": _dropdown("gamma"),
            "kind": _dropdown("map"),
            "block": _dropdown("layer"),
            "head": _dropdown("head"),
            "threshold": widgets.FloatSlider(
                description="threshold", min=0.05, max=1, step=0.05, value=state.threshold, readout_format=".0%",
                layout=_ROW,
            ),
        }  # fmt: skip
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.upload = widgets.FileUpload(accept="image/*", description="upload a picture", layout=_ROW)
        self.upload.observe(self._uploaded, "value")
        self.photograph, self.map = _picture(), _picture()
        self.scores, self.message = widgets.HTML(), widgets.HTML()
        self.pad = DrawingPad(self._drawn)
        self.widget = widgets.VBox([
            _wrapping(
                widgets.VBox([*self.controls.values(), self.upload, self.message], layout=_COLUMN),
                self.photograph,
                self.map,
                widgets.VBox([self.scores], layout=_COLUMN),
            ),
            widgets.HTML("<b>Draw your own digit</b>, then let go:"),
            self.pad.widget,
        ])  # fmt: skip
        self.widget.add_class("explorer")
        self._show()

    def _changed(self, change: dict) -> None:
        with self._one_at_a_time:
            if self._setting:
                return
            moved = next(name for name, control in self.controls.items() if control is change["owner"])
            state = replace(self.state, **{moved: change["new"]})
            if moved in ("backbone", "pooling"):
                kinds = self.explorer.choices(self.state)["kind"]
                state = replace(state, kind=None if state.kind == kinds[0] else state.kind)  # the most telling one
            self._go(state)

    def _go(self, state: State) -> None:
        self.state = self.explorer.fit(state)
        self.message.value = ""
        self._show()

    def _show(self) -> None:
        answer, choices = self.explorer.answer(self.state), self.explorer.choices(self.state)
        self._setting = True  # what is set below was not chosen by the reader
        try:
            for name, values in choices.items():
                control = self.controls[name]
                options = tuple((_label(name, value), value) for value in values)
                if control.options != options:
                    control.options = options
                control.disabled = len(values) == 1
                control.value = getattr(self.state, name)
            self.controls["threshold"].value = self.state.threshold
        finally:
            self._setting = False
        photograph, over = answer.pictures()
        self.photograph.value, self.map.value = _png(photograph), _png(over)
        self.scores.value = _bars(answer)

    def _uploaded(self, change: dict) -> None:
        if not change["new"]:
            return
        file = change["new"][0]
        with self._one_at_a_time:
            try:
                self.explorer.put(UPLOADED, _read(file["name"], bytes(file["content"])))
            except ValueError as error:
                self.message.value = f"<p>{escape(str(error))}</p>"
            else:
                self._go(replace(self.state, image=UPLOADED))
        self.upload.value = ()  # so that the same file can be chosen again, and its bytes are not kept

    def _drawn(self, picture: Image.Image) -> None:
        with self._one_at_a_time:
            self.explorer.put(DRAWN, picture)
            self._go(replace(self.state, image=DRAWN))


class DrawingPad:
    """A piece of a photograph to draw on, with mouse or finger.

    Args:
        drawn: called with the picture whenever a stroke ends, and when the pad was cleared.
    """

    def __init__(self, drawn: Callable[[Image.Image], None]) -> None:
        self.drawn, self.strokes, self._drawing = drawn, [], False
        self.background = widgets.Dropdown(
            options=PHOTOS, value="coffee", description="background", layout=_ROW, style={"description_width": "80px"}
        )
        self.background.observe(self._cleared, "value")
        self.clear = widgets.Button(description="clear", layout=_ROW)
        self.clear.on_click(self._cleared)
        self.canvas = Canvas(width=CANVAS, height=CANVAS, layout={"width": f"{CANVAS}px", "height": f"{CANVAS}px"})
        self.canvas.on_mouse_down(self._begin)
        self.canvas.on_mouse_move(self._move)
        self.canvas.on_mouse_up(self._end)
        self.canvas.on_mouse_out(self._end)
        self.canvas.on_touch_start(lambda touches: self._begin(*touches[0]))
        self.canvas.on_touch_move(lambda touches: self._move(*touches[0]))
        self.canvas.on_touch_end(lambda touches: self._end())
        self.widget = _wrapping(self.canvas, widgets.VBox([self.background, self.clear], layout=_COLUMN))
        self._draw()

    def picture(self) -> Image.Image:
        return draw_digit(self.strokes, self.background.value, CANVAS)

    def _draw(self) -> None:
        with hold_canvas():
            self.canvas.put_image_data(np.asarray(self.picture()))
            self.canvas.line_cap, self.canvas.line_width = "round", STROKE * CANVAS
            self.canvas.stroke_style = drawing_ground(self.background.value, CANVAS)[1]

    def _begin(self, x: float, y: float) -> None:
        self._drawing = True
        self.strokes.append([])
        self._move(x, y)

    def _move(self, x: float, y: float) -> None:
        if self._drawing:
            stroke = self.strokes[-1]
            stroke.append((min(max(x / CANVAS, 0.0), 1.0), min(max(y / CANVAS, 0.0), 1.0)))
            line = np.array(stroke[-2:] if len(stroke) > 1 else 2 * stroke) * CANVAS
            self.canvas.stroke_line(*line.ravel().tolist())  # the new piece alone: a whole picture is 200 kB

    def _end(self, *place: float) -> None:
        if self._drawing:
            self._drawing = False
            self.drawn(self.picture())

    def _cleared(self, change: object) -> None:
        self.strokes = []
        self._draw()
        self.drawn(self.picture())


_ROW = widgets.Layout(width="auto")
_COLUMN = widgets.Layout(width="300px", max_width="100%")


def _dropdown(description: str) -> widgets.Dropdown:
    return widgets.Dropdown(description=description, layout=_ROW, style={"description_width": "80px"})


def _picture() -> widgets.Image:
    return widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain", "margin": "4px"})


def _wrapping(*parts: widgets.Widget) -> widgets.Box:
    """Side by side where there is room, else below each other."""
    return widgets.Box(parts, layout={"display": "flex", "flex_flow": "row wrap", "align_items": "flex-start"})


def _label(name: str, value: object) -> str:
    if name == "kind":
        return KINDS[value]
    if value is None:
        return {"gamma": "none", "head": "mean of all"}.get(name, NOTHING)
    return str(value)


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _bars(answer: Answer) -> str:
    """The highest scores in the colours of the reader's theme."""
    best = answer.best()
    rows = "".join(
        f"<tr><td style='text-align:left;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:9em'>"
        f"{escape(name)}</td><td style='width:100%'><div style='background:var(--jp-brand-color1);height:0.9em;"
        f"width:{max(100 * score, 0.5):.1f}%'></div></td><td style='text-align:right'>{score:.0%}</td></tr>"
        for name, score in best
    )
    name, score = best[0]
    return (
        f"<div style='color:var(--jp-ui-font-color1);line-height:1.4'><b>Answer: {escape(name)}</b> ({score:.0%})"
        f"<table style='width:100%;color:inherit'>{rows}</table></div>"
    )


def _read(name: str, content: bytes) -> Image.Image:
    """An uploaded file as a picture; a ValueError says what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(content)
        try:
            return open_image(path)
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from None
