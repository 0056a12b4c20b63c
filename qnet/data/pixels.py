"""Conversion of images of any kind to one array of 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from PIL import Image, ImageOps

from qnet.data.raw import Progress
from qnet.data.workers import usable_cpus
from qnet.errors import UserError


def to_pixels(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """The pixels of one image, uint8 [channels, size, size]; channels is 1 or 3.

    Photographs are turned upright according to their EXIF data. Images of another size are resized
    with a bilinear filter (averaging when shrinking); those that are not square are cropped at the
    centre, not distorted. Transparent parts become white, 16-bit values are rounded to 8 bits, and
    colour becomes gray by the luma weights of ITU-R 601.

    Raises:
        ValueError: if the values are float or beyond 16 bits, which have no known range.
        UserError: image is no PIL image, size is below 1, or channels is another number.
    """
    if not isinstance(image, Image.Image):
        raise UserError(
            f"to_pixels: image is a {type(image).__name__}; give what PIL.Image.open returns"
        )
    if size < 1:
        raise UserError(f"to_pixels: size {size}; use a whole number above 0")
    if channels not in (1, 3):
        raise UserError(f"to_pixels: channels {channels}; use 1 (gray) or 3 (colour)")
    image = eight_bits(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.array(image)  # writable, unlike PIL's own
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def fill(
    count: int,
    size: int,
    channels: int,
    read: Callable[[int], np.ndarray],
    progress: Progress | None = None,
) -> np.ndarray:
    """Collect `read(0) ... read(count - 1)`, uint8 [C, S, S], in one array uint8 [count, C, S, S].

    Raises:
        UserError: if memory cannot hold two copies of the array, as `prepare` needs; or as `read`
            does.
    """
    needed, free = 2 * count * channels * size**2, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"data.size: {size} takes {needed / 1e9:.1f} GB of memory for {count} images, and "
            f"{free / 1e9:.1f} GB are free: choose a smaller size"
        )
    images = np.empty((count, channels, size, size), dtype=np.uint8)

    def work(index: int) -> None:
        images[index] = read(index)

    for_each(count, work, progress)
    return images


def for_each(count: int, work: Callable[[int], None], progress: Progress | None = None) -> None:
    """Call `work(0) ... work(count - 1)`, in several threads and in no particular order.

    PIL lets other threads run while it decodes. Raises what `work` raises; if several calls raise,
    the exception of the first index.
    """

    def work_on(indices: range) -> int:
        for index in indices:
            work(index)
        return indices.stop

    # In small groups: handing over a single small image takes longer than reading it.
    handfuls = [range(start, min(start + 32, count)) for start in range(0, count, 32)]
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        for done in pool.map(work_on, handfuls):
            if progress is not None:
                progress(done, count)


def convert(
    images: np.ndarray, size: int, channels: int, progress: Progress | None = None
) -> np.ndarray:
    """Convert images uint8 [N, C, H, W] to another size or number of channels.

    If neither differs, return `images` itself.
    """
    if images.shape[1:] == (channels, size, size):
        return images

    def read(index: int) -> np.ndarray:
        planes = images[index]
        pixels = planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)
        return to_pixels(Image.fromarray(np.ascontiguousarray(pixels)), size, channels)

    return fill(len(images), size, channels, read, progress)


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel without transparency."""
    if image.mode == "F":
        raise ValueError("float pixels have no known range, save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which some versions of PIL open as 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("pixels beyond 16 bits, save it with 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image
