"""The explorer's logic: it shows what the package computes, and computes nothing twice."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simpool_lite import create_model, load_data
from simpool_lite.figures import Explorer, Network, State, draw_digit, explorer_figure, page
from simpool_lite.figures.explorer import recorded_networks
from simpool_lite.measure.maps import attention_maps

CLASSES = [str(i) for i in range(10)]


def network(backbone: str, pool: str, name: str, gamma: float | None = None, **pool_kwargs) -> Network:
    def load():
        torch.manual_seed(0)
        kwargs = pool_kwargs | ({"gamma": gamma} if gamma else {})
        return create_model(backbone, pool, 10, pool_kwargs=kwargs)

    return Network(backbone, name, load, CLASSES, gamma)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(
        [
            network("convnet_micro", "gap", "GAP"),
            network("convnet_micro", "simpool", "SimPool"),
            network("convnet_micro", "simpool", "SimPool", 2.0),
            network("convnet_micro", "simpool", "SimPool, 4 heads", num_heads=4),
            network("vit_micro", "cls", "CLS"),
        ]
    )


def test_scores_and_map_are_the_models(explorer):
    data = load_data("photo-digits", "test", num_images=12)
    model = network("convnet_micro", "simpool", "SimPool").load().eval()
    pixels = data.images[7][None].float() / 127.5 - 1  # the model's mean and deviation are 0.5
    answer = explorer.answer(State("photo-digits 7"))
    torch.testing.assert_close(answer.map, model.attention(pixels)[0, 0])
    torch.testing.assert_close(answer.scores, model(pixels)[0].softmax(0).detach())
    assert answer.best(1)[0][0] == CLASSES[model(pixels).argmax()]
    assert np.array_equal(np.asarray(answer.photograph), data.images[7].permute(1, 2, 0).numpy())


def test_heads_and_blocks_of_a_class_token(explorer):
    model = network("vit_micro", "cls", "CLS").load().eval()
    data = load_data("photo-digits", "test", num_images=12)
    expected = attention_maps(model, data.images[:1].float() / 127.5 - 1, "cls", block=1, each_head=True)[0]
    state = State(backbone="vit_micro", pooling="CLS", kind="cls", block=1)
    torch.testing.assert_close(explorer.answer(replace(state, head=2)).map, expected[2])
    torch.testing.assert_close(explorer.answer(state).map, expected.mean(0))


def test_the_networks_most_telling_map_comes_first(explorer):
    assert explorer.answer(State(pooling="GAP")).state.kind == "cam"
    assert explorer.answer(State()).state.kind == "pool"
    assert explorer.answer(State(backbone="vit_micro", pooling="CLS")).state.kind == "cls"


def test_threshold_head_and_return_do_not_run_the_network_again(explorer):
    states = [State("photo-digits 1", pooling="SimPool, 4 heads"), State("photo-digits 2", gamma=2.0)]
    for state in states:
        explorer.answer(state)
    before = explorer.runs
    for threshold in (0.05, 0.3, 0.9, 1):
        explorer.answer(replace(states[0], threshold=threshold))
    for head in range(4):
        explorer.answer(replace(states[0], head=head))
    for state in states:
        explorer.answer(state)
    assert explorer.runs == before


def test_the_box_bounds_what_reaches_the_threshold(explorer):
    answer = explorer.answer(State("photo-digits 3", threshold=1))
    row, column = divmod(answer.map.argmax().item(), 12)
    assert answer.box == (4 * column, 4 * row, 4 * column + 4, 4 * row + 4)  # one position of 4 x 4 pixels
    wide = explorer.answer(State("photo-digits 3", threshold=1e-6)).box
    assert wide == (0, 0, 48, 48)


def test_picture_shows_the_map_and_the_box(explorer):
    answer = explorer.answer(State("photo-digits 3", threshold=1))
    _, over = answer.pictures(480)
    row, column = divmod(answer.map.argmax().item(), 12)
    inside = np.asarray(over)[40 * row + 10 : 40 * row + 30, 40 * column + 10 : 40 * column + 30].mean((0, 1))
    corner = np.asarray(over)[40 * row + 1, 40 * column + 20]
    assert tuple(corner) == (0, 255, 255)
    # The brightest of "inferno" is (252, 255, 164), at three quarters over grey.
    assert inside[0] > 185 and inside[1] > 185


def test_another_proportion_has_the_crop_marked(explorer):
    explorer.put("wide", Image.new("RGB", (200, 100), "red"))
    answer = explorer.answer(State("wide"))
    assert answer.crop == (50, 0, 150, 100)
    shown, over = answer.pictures(200)
    assert shown.size == over.size == (200, 100)
    assert shown.getpixel((51, 50)) == (255, 255, 255)


def test_a_replaced_picture_is_seen(explorer):
    explorer.put("mine", Image.new("RGB", (48, 48), "black"))
    first = explorer.answer(State("mine"))
    explorer.put("mine", Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)))
    assert not torch.equal(explorer.answer(State("mine")).map, first.map)
    explorer.put("large", Image.new("RGBA", (4000, 2000)))
    assert explorer.answer(State("large")).photograph.size == (1024, 512)  # what is kept is bounded
    with pytest.raises(ValueError, match="name: expected another"):
        explorer.put("coffee", Image.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    "change",
    [{"image": "photo-digits 99"}, {"backbone": "resnet50"}, {"pooling": "CLS"}, {"gamma": 3.0}, {"kind": "rollout"},
     {"block": 1}, {"head": 0}, {"head": True, "pooling": "SimPool, 4 heads"}, {"threshold": 0}, {"threshold": 1.5}],
)  # fmt: skip
def test_a_bad_field_is_named(explorer, change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))}: expected"):
        explorer.answer(replace(State(), **change))


def test_fit_gives_what_exists(explorer):
    wrong = State("none", "vit_micro", "SimPool", 2.0, "cam", 7, 9)
    fitted = explorer.fit(wrong)
    assert fitted == State("photo-digits 0", "vit_micro", "CLS", None, "cls", 2, None)
    assert explorer.fit(fitted) == fitted
    explorer.answer(fitted)
    kept = State("coffee", "convnet_micro", "SimPool, 4 heads", None, "pool", None, 3, 0.4)
    assert explorer.fit(kept) == kept


def test_drawing():
    line = np.asarray(draw_digit([[(0.5, 0.2), (0.5, 0.8)]], "china", 100)).astype(int)
    empty = np.asarray(draw_digit([], "china", 100)).astype(int)
    changed = np.abs(line - empty).sum(2) > 0
    assert changed[20:80, 47:53].all() and not changed[:, :44].any() and not changed[:, 56:].any()
    with pytest.raises(ValueError, match="background: expected"):
        draw_digit([], "moon")
    with pytest.raises(ValueError, match="strokes: expected"):
        draw_digit([[(0.5, 1.2)]])


def test_figure_of_states(explorer):
    figure = explorer_figure(explorer, {"a": State(), "b": State(pooling="GAP")})
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["a", "b"]
    with pytest.raises(ValueError, match="states: expected"):
        explorer_figure(explorer, {})


def test_recorded_networks_know_their_images():
    networks = {(n.backbone, n.pooling, n.gamma): n for n in recorded_networks()}
    for pooling in ("GAP", "GeM", "SimPool"):
        assert networks["convnet_micro", pooling, None].images["size"] == 32  # protocol 2, not an older run of 40 or 48
    explorer = Explorer([networks["convnet_micro", "GAP", None]])
    answer = explorer.answer(State(pooling="GAP"))
    assert answer.photograph.size == (32, 32) and answer.map.shape == (8, 8)  # not enlarged to the backbone's 48


def test_page_follows_its_controls(explorer):
    shown = page.Page(explorer, State())
    first, scores = shown.map.value, shown.scores.value
    shown.controls["threshold"].value = 1.0
    assert shown.map.value != first and shown.scores.value == scores
    shown.controls["pooling"].value = "GAP"
    assert shown.controls["kind"].value == "cam" and shown.scores.value != scores
    assert shown.controls["gamma"].disabled
    shown.controls["backbone"].value = "vit_micro"
    assert shown.state == replace(shown.state, pooling="CLS", kind="cls", block=2, head=None)
    shown.controls["head"].value = 1
    shown.controls["image"].value = "coffee"
    assert shown.state.head == 1 and shown.state.image == "coffee"


def test_page_draws_and_uploads(explorer, tmp_path):
    shown = page.Page(explorer, State())
    shown.pad._begin(120, 50)
    for y in range(60, 200, 10):
        shown.pad._move(120, y)
    shown.pad._end(120, 190)
    assert shown.state.image == page.DRAWN and shown.controls["image"].value == page.DRAWN
    Image.new("LA", (300, 200), (9, 0)).save(tmp_path / "a.png")
    file = {"name": "a.png", "type": "image/png", "content": memoryview((tmp_path / "a.png").read_bytes())}
    shown._uploaded({"new": (file,)})
    assert shown.state.image == page.UPLOADED and not shown.message.value
    assert explorer.answer(shown.state).photograph.getpixel((0, 0)) == (255, 255, 255)
    shown._uploaded({"new": ({**file, "name": "<b>.png", "content": memoryview(b"no picture")},)})
    assert "&lt;b&gt;.png: cannot be read" in shown.message.value


def test_page_finishes_a_change_before_the_next(explorer, monkeypatch):
    """JupyterLab lets the kernel handle messages of widgets in two threads: neither change may undo the other."""
    shown, fit = page.Page(explorer, State()), explorer.fit
    drawing = threading.Thread(target=shown._drawn, args=(Image.new("RGB", (30, 30)),))

    def fit_while_somebody_draws(state):
        if drawing.ident is None:
            drawing.start()
            drawing.join(1)  # it waits for us; were it not to, it would be done by now
        return fit(state)

    monkeypatch.setattr(explorer, "fit", fit_while_somebody_draws)
    shown.controls["pooling"].value = "GAP"
    drawing.join()
    assert shown.state.image == shown.controls["image"].value == page.DRAWN
    assert shown.state.pooling == shown.controls["pooling"].value == "GAP"


def test_pictures_where_nobody_sits(explorer, capsys):
    assert not page.is_interactive()
    page.explore(explorer, {"a": State()})  # draws a figure
    assert "Page" not in capsys.readouterr().out
