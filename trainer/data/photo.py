"""One photograph, of any size and kind, as the square of pixels that is packed."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer.data.dataset import Bytes, shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")  # of Pillow's; the fewer, the less a hostile file can reach
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm")
FILE_LIMIT = 64 << 20  # bytes of one file
# Of one picture, and of all that are decoded at a time: a pixel takes 4 bytes of RGB, with its alpha and a copy without
# 8, half read from a progressive JPEG 6, and 16 in WebP's decoder (measured: 0.77 GB for this many)
PIXEL_LIMIT = 50_000_000
BAND = 1 << 20  # pixels made to 8 bits at a time
_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's blocks of 16 MB stay with malloc once freed, a few for each thread; larger ones go back to the machine
Image.core.set_block_size(128 << 20)  # type: ignore[attr-defined]
warnings.filterwarnings("ignore", module="PIL")  # of odd files: they are told by name here, or are good


class Broken(Exception):
    """Why a file gives no picture."""


def too_long() -> Broken:
    return Broken(f"more than {FILE_LIMIT >> 20} MB long")


def decode(data: bytes, side: int) -> Bytes:
    """uint8 [side, side, 3]: upright, the shorter side scaled to `side`, the middle of the longer one.

    Grey becomes RGB, CMYK and palettes too, 16 bits a channel become 8, of an animation the first picture is taken,
    transparency is left out, as torchvision's own loader does. Raises `Broken`.
    """
    if len(data) > FILE_LIMIT:
        raise too_long()
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > PIXEL_LIMIT:
            raise Broken(f"{image.width}x{image.height} pixels, and {PIXEL_LIMIT // 10**6} million are the most")
        if image.mode == "F":
            raise Broken("its pixels are floating-point numbers, of which none is known to be white")
        pixels = image.width * image.height
        # JPEG: decoded at an eighth, a quarter or half of its size where that is enough
        image.draft(None, (side, side))
        if not image.info.get("progressive"):  # such a one is read whole before it is scaled
            pixels = image.width * image.height
        with _room.taken(pixels):
            return _square(image, side)
    except (Broken, MemoryError):
        raise
    except UnidentifiedImageError as e:
        raise Broken("no kind of picture that is read here") from e
    except Exception as e:  # Pillow raises many kinds for broken files, among them SyntaxError and struct.error
        raise Broken(shown(e) or type(e).__name__) from e


def _square(image: Image.Image, side: int) -> Bytes:
    image.load()  # before its EXIF, which in a PNG may lie behind the pixels: a fault of these must be heard
    turn = _TURNS.get(_orientation(image))
    image = _in_8_bits(image)
    if image.mode not in ("L", "RGB"):  # as these it is scaled to the same bytes, without a copy
        image = image.convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    square = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short)).convert("RGB")
    return np.asarray(square if turn is None else square.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """1, for upright, where the file doesn't tell: a good picture may have EXIF that can't be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # many kinds, as above
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    made, rows = Image.new("L", image.size), max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = 0, top, image.width, min(top + rows, image.height)
        values = np.asarray(image.crop(box)) >> 8
        made.paste(Image.fromarray(values.clip(0, 255).astype(np.uint8)), box)
    return made


class _Room:
    """So many pixels may be decoded at a time, by all threads together."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Once there is room for so many, which must be no more than there is in all."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._left)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_room = _Room(PIXEL_LIMIT)
