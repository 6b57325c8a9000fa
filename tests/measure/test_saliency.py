"""The baselines: formulas in numpy and scipy, and what they do to the scores of boxes."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from simpool_lite.measure.localisation import box_accuracy, largest_boxes, pointing_game
from simpool_lite.measure.saliency import centre_gaussian, frame, spectral_residual, uniform


@pytest.mark.parametrize("baseline", [uniform, centre_gaussian])
def test_baselines_without_an_image_are_weights(baseline):
    maps = baseline(torch.rand(2, 3, 20, 31))
    assert maps.shape == (2, 20, 31) and (maps > 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(maps, maps.flip(1))
    torch.testing.assert_close(maps, maps.flip(2))


def test_the_box_of_the_frame_is_the_whole_image():
    maps, true = frame(torch.rand(2, 3, 16, 12)), [torch.tensor([[0, 0, 11, 15]]), torch.tensor([[0, 0, 11, 6]])]
    for threshold in (0.0, 0.5, 0.99):
        assert largest_boxes(maps, (16, 12), threshold).tolist() == [[0, 0, 11, 15]] * 2
    assert box_accuracy(maps, true, (16, 12))["max_box_acc"] == {0.3: 100, 0.5: 50, 0.7: 50}  # 7 rows of 16


def test_uniform_has_no_box_and_scores_the_objects_share():
    maps, true = uniform(torch.rand(2, 3, 16, 16)), [torch.tensor([[0, 0, 15, 15]]), torch.tensor([[0, 0, 4, 4]])]
    assert box_accuracy(maps, true, 16)["max_box_acc_v2"] == 0
    assert pointing_game(maps, true, 16) == pytest.approx(100 * (225 + 16) / 2 / 256)


def test_centre_gaussian_finds_what_is_in_the_centre():
    images = torch.rand(2, 3, 40, 60)
    true = [torch.tensor([[20, 13, 40, 27]]), torch.tensor([[0, 0, 10, 10]])]
    assert box_accuracy(centre_gaussian(images), true, (40, 60))["max_box_acc"] == {0.3: 50, 0.5: 50, 0.7: 50}
    y, x = np.mgrid[:40, :60]
    weights = np.exp(-(((x - 29.5) / 15) ** 2 + ((y - 19.5) / 10) ** 2) / 2)
    np.testing.assert_allclose(centre_gaussian(images)[1], weights / weights.sum(), rtol=1e-4)


def test_spectral_residual_is_its_formula():
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    for image, found in zip(images.double().mean(1).numpy(), spectral_residual(images), strict=True):
        spectrum = np.fft.fft2(image)
        logarithm = np.log(np.abs(spectrum))
        residual = logarithm - ndimage.uniform_filter(logarithm, 3, mode="nearest")
        saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        expected = ndimage.gaussian_filter(saliency, 2.5, mode="mirror", radius=5)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_spectral_residual_finds_what_is_unlike_the_rest():
    x = torch.arange(128)
    images = (x % 8 < 4).float().expand(1, 3, 128, 128).clone()
    images[:, :, 80:104, 24:48] = images[:, :, 80:104, 24:48].transpose(2, 3)  # stripes the other way
    assert pointing_game(spectral_residual(images), [torch.tensor([[20, 76, 52, 108]])], 128) == 100


def test_spectral_residual_keeps_the_shape_and_stands_images_of_one_colour():
    assert spectral_residual(torch.rand(2, 3, 100, 200)).shape == (2, 32, 64)
    for value in (0.0, 0.5):
        assert spectral_residual(torch.full((1, 3, 50, 50), value)).isfinite().all()
