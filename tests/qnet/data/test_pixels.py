"""Images of every kind become 8-bit pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qnet.data.pixels import convert, fill, for_each, to_pixels
from qnet.errors import UserError

RAMP = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "1", "I", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 5, 12])
def test_every_mode_gives_bytes(mode: str, channels: int, size: int) -> None:
    image = Image.fromarray(RAMP).convert("I").convert(mode) if "I" in mode else None
    pixels = to_pixels(image or Image.fromarray(RAMP).convert(mode), size, channels)
    assert pixels.shape == (channels, size, size)
    assert pixels.dtype == np.uint8


def test_gray_and_colour() -> None:
    gray = Image.fromarray(RAMP)
    assert np.array_equal(to_pixels(gray, 8, 1), RAMP[None])
    assert np.array_equal(to_pixels(gray, 8, 3), np.stack([RAMP] * 3))
    assert np.array_equal(to_pixels(gray.convert("RGB"), 8, 1), RAMP[None])
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert np.array_equal(to_pixels(red, 2, 3)[:, 0, 0], [200, 0, 0])
    assert to_pixels(red, 2, 1)[0, 0, 0] == round(0.299 * 200)


def test_palette_colours_are_looked_up() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert np.array_equal(to_pixels(image, 3, 3)[:, 0, 0], [10, 20, 30])


@given(st.integers(0, 65535))
def test_sixteen_bits_are_rounded_to_eight(value: int) -> None:
    for dtype in (np.uint16, np.int32):
        image = Image.fromarray(np.full((2, 2), value, dtype))
        assert to_pixels(image, 2, 1)[0, 0, 0] == round(value / 65535 * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_becomes_white(mode: str) -> None:
    clear = Image.new(mode, (2, 2), (0,) * len(mode))
    assert (to_pixels(clear, 2, 3) == 255).all()
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert (to_pixels(palette, 2, 1) == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("picture.jpg", 8, 3), "image is a str; give what PIL.Image.open returns"),
        ((RAMP, 8, 3), "image is a ndarray"),
        ((Image.fromarray(RAMP), 0, 3), "size 0; use a whole number above 0"),
    ],
)
def test_what_has_no_pixels_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_pixels(*arguments)


def test_pixels_are_the_callers_own() -> None:
    assert to_pixels(Image.fromarray(RAMP), 8, 3).flags.writeable


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"to_pixels: channels 4; use 1 \(gray\) or 3"):
        to_pixels(Image.fromarray(RAMP), 8, 4)


def test_unknown_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="float"):
        to_pixels(Image.fromarray(np.zeros((2, 2), np.float32)), 2, 1)
    with pytest.raises(ValueError, match="16 bits"):
        to_pixels(Image.fromarray(np.full((2, 2), 65536, np.int32)), 2, 1)


def test_an_oblong_image_is_cropped_at_its_centre() -> None:
    columns = np.repeat([0, 100, 200, 250], 2).astype(np.uint8)
    image = Image.fromarray(np.tile(columns, (4, 1)))  # 8 wide, 4 high
    assert np.array_equal(to_pixels(image, 4, 1)[0, 0], [100, 100, 200, 200])


def test_convert_leaves_fitting_images_alone() -> None:
    images = np.zeros((3, 1, 8, 8), np.uint8)
    assert convert(images, 8, 1) is images
    assert convert(images, 8, 3).shape == (3, 3, 8, 8)
    assert convert(np.zeros((3, 3, 8, 8), np.uint8), 4, 1).shape == (3, 1, 4, 4)


def test_fill_keeps_the_order_and_tells_the_progress() -> None:
    told: list[tuple[int, int]] = []
    images = fill(
        100, 1, 1, lambda index: np.full((1, 1, 1), index), lambda *done: told.append(done)
    )
    assert images.flatten().tolist() == list(range(100))
    assert told == [(32, 100), (64, 100), (96, 100), (100, 100)]


def test_the_first_error_wins() -> None:
    def work(index: int) -> None:
        if index in (40, 41, 90):
            raise UserError(f"{index}")

    with pytest.raises(UserError, match=r"^40$"):
        for_each(100, work)


def test_more_than_the_memory_holds() -> None:
    with pytest.raises(UserError, match=r"data\.size: 1000000 takes 6000000000\.0 GB of memory"):
        fill(10**6, 10**6, 3, lambda index: np.zeros(0))
