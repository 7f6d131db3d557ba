"""What an image file may be: the formats that are opened, and the sizes. Image files come from outside.

Pillow opens whatever it knows, not what the name says; for EPS it runs Ghostscript from PATH. So the formats are named.
"""

from __future__ import annotations

from pathlib import Path

from workbench.errors import DataError

# Name in a file -> name in Pillow.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# Resizing the shorter side of a very long image first makes one of any size out of a few bytes. 64 million pixels are
# 192 MB in RGB, and the size of a large camera's picture.
LARGEST_PIXELS = 1 << 26


def check_pixels(width: int, height: int, file: Path, what: str) -> None:
    """Refuse an image that is too large to be held.

    Args:
        what: `has` as it is stored, or what it would become.

    Raises:
        DataError: it has more than LARGEST_PIXELS.
    """
    if width * height > LARGEST_PIXELS:
        raise DataError(
            f"The image {file} {what} {width} x {height} pixels; at most {LARGEST_PIXELS} are unpacked. "
            "Remove the file, or crop or shrink it."
        )
