"""python -m simpool_lite localise: a folder of photographs with drawn boxes, one command."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from simpool_lite.__main__ import main
from simpool_lite.experiments.localising import head_cam
from simpool_lite.measure.localisation import box_accuracy, largest_boxes
from simpool_lite.training.probes import Head

XML = "<annotation><object><bndbox>{}</bndbox></object></annotation>"


@pytest.fixture
def photographs(tmp_path):
    """A coloured square on noise, red or blue; one test photograph has no box."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 6), ("test", 3)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 90, (96, 96, 3), dtype=np.uint8)
                x, y = generator.integers(8, 48, 2)
                pixels[y : y + 40, x : x + 40, channel] = 250
                Image.fromarray(pixels).save(folder / f"{i}.png")
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + 40, "ymax": y + 40}
                if (split, name, i) != ("test", "blue", 2):
                    text = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
                    (folder / f"{i}.xml").write_text(XML.format(text))
    return tmp_path / "photographs"


def test_a_folder_is_scored_by_one_command(tmp_path, photographs, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["localise", f"--data-root={photographs}", "--seeds=1", "--epochs=1", "--batch-size=4"]
    command += [f"--output={tmp_path / 'out'}", "--progress=false", "--device=cpu"]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="method")
    networks = ["GAP + CAM", "SimPool", "SimPool, gamma 2"]
    assert list(table.index) == [*networks, "centred Gaussian", "whole photograph", "uniform", "spectral residual"]
    assert table.top1[networks].between(0, 100).all() and table.top1.drop(networks).isna().all()
    assert (table[["box_30", "box_50", "box_70"]].mean(axis=1) - table.max_box_acc_v2).abs().max() < 1e-9
    assert (table.low <= table.max_box_acc_v2 + 1e-9).all() and table.loc["GAP + CAM", "difference"] == 0
    assert table.max_box_acc_v2["uniform"] == 0  # its box is one pixel
    assert (tmp_path / "out" / "picture.png").stat().st_size > 20_000
    assert "5 test photographs; 1 without a box left out" in capsys.readouterr().out


def test_wrong_use_is_named(tmp_path, photographs, capsys):
    assert main(["localise", f"--data-root={photographs}", "--pools=[simpol]"]) == 2
    assert "did you mean 'simpool'" in capsys.readouterr().err
    for file in photographs.rglob("*.xml"):
        file.unlink()
    assert main(["localise", f"--data-root={photographs}", f"--output={tmp_path / 'out'}"]) == 2
    assert "expected boxes for the test photographs" in capsys.readouterr().err
    assert main(["localise", f"--data-root={tmp_path / 'no'}", f"--output={tmp_path / 'out'}"]) == 2
    assert "was not found under" in capsys.readouterr().err


def test_the_mean_of_a_cam_is_the_logit_up_to_a_constant():
    torch.manual_seed(0)
    head, features = Head("gap", 8, 3), torch.randn(5, 12, 8) * 2 + 1
    head(features, None)  # the BatchNorm sees statistics that are not 0 and 1
    head.eval()
    logits = head(features, None)[0]
    for label in range(3):
        cam = head_cam(head, features, torch.full((5,), label))
        rest = logits[:, label] - cam.mean(1)
        torch.testing.assert_close(rest, rest[:1].expand(5))
    torch.testing.assert_close(head_cam(head, features), head_cam(head, features, logits.argmax(1)))


def test_boxes_at_a_threshold():
    maps = torch.zeros(2, 20, 20)
    maps[:, 2:6, 3:9] = 1
    maps[1, 10:18, 10:19] = 0.6
    assert largest_boxes(maps, 20, 0.5).tolist() == [[3, 2, 9, 6], [10, 10, 19, 18]]
    assert largest_boxes(maps, 20, 0.7).tolist() == [[3, 2, 9, 6]] * 2
    assert largest_boxes(torch.ones(1, 4, 4), 20, 0.5).tolist() == [[0, 0, 0, 0]]
    found = largest_boxes(maps, 20, 0.5)
    assert box_accuracy(maps, list(found[:, None]), 20, contours="largest")["max_box_acc"][0.7] == 100
    with pytest.raises(ValueError, match="threshold: expected a share"):
        largest_boxes(maps, 20, 1.0)
