"""Upsampling the stored digits."""

import numpy as np
import pytest

from workbench.datasets.digits_images import PIXEL_MEAN, PIXEL_STD, upsample_digits
from workbench.errors import DataError


def random_images(count):
    return np.random.default_rng(0).integers(0, 17, (count, 8, 8), dtype=np.uint8)


def test_upsampling_equals_torch_bilinear_interpolation():
    torch = pytest.importorskip("torch")
    images = random_images(3)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images.astype(np.float32))[:, None], size=(32, 32), mode="bilinear", align_corners=False
    ).numpy()
    upsampled = upsample_digits(images) * PIXEL_STD + PIXEL_MEAN
    # The interpolation itself is exact; the normalisation and its undoing round in float32.
    np.testing.assert_allclose(upsampled * 16, expected, atol=1e-5)


def test_result_is_float32_of_one_channel_and_32_by_32():
    result = upsample_digits(random_images(5))
    assert (result.shape, result.dtype) == ((5, 1, 32, 32), np.float32)


def test_background_becomes_minus_mean_over_deviation():
    result = upsample_digits(np.zeros((1, 8, 8), np.uint8))
    # One division in float32.
    np.testing.assert_allclose(result, -PIXEL_MEAN / PIXEL_STD, rtol=1e-6)


def test_each_image_is_upsampled_alone():
    images = random_images(4)
    np.testing.assert_array_equal(upsample_digits(images)[2:3], upsample_digits(images[2:3]))


def test_no_images_give_no_images():
    assert upsample_digits(np.zeros((0, 8, 8), np.uint8)).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("shape", [(8, 8), (2, 32, 32), (2, 1, 8, 8)])
def test_other_shapes_are_refused_with_the_shape_in_the_message(shape):
    with pytest.raises(DataError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        upsample_digits(np.zeros(shape, np.uint8))


def test_pixels_above_16_are_refused():
    with pytest.raises(DataError, match=r"0 to 16, got 0\.\.255"):
        upsample_digits(np.array([[[0] * 8] * 7 + [[255] * 8]], np.uint8))
