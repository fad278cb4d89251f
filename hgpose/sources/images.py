"""Frames of image files, and the one door through which the package reads an image."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from hgpose.errors import InputError
from hgpose.types import Frame, SourceInfo

#: Photographs that Pillow cannot read, which are named all the same, not passed over.
_HEIF_SUFFIXES = frozenset({".heic", ".heif"})
#: What counts as an image inside a folder. A file given by name is tried whatever its suffix.
IMAGE_SUFFIXES = _HEIF_SUFFIXES | {
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
}
_GLOB = re.compile(r"[*?\[]")
#: EXIF orientations that exchange width and height.
_LYING = (5, 6, 7, 8)
#: A sentence names no more.
FAILURES_NAMED = 3


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as ``(H, W, 3)`` uint8 RGB, turned upright by its EXIF tag.

    Of an animation or a file of several pages, the first picture. Transparent pixels are laid over
    white, as most viewers do: the colours hidden below them were never meant to be seen. 16-bit grey
    keeps its upper 8 bits.

    Raises:
        InputError: it cannot be read, is no image, is damaged, or is larger than Pillow's limit on
            decompression bombs (found before decoding).
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, px, of what :func:`read_image` makes of a file, from its header alone.

    Raises:
        InputError: as :func:`read_image`, as far as the header tells.
    """
    with _opened(path) as image:
        if image.format == "TIFF":
            # Pillow gives the size of the upright picture.
            return image.size
        # PNG's own getexif decodes the whole picture, lest the tag stand behind it.
        lying = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _LYING
        return (image.height, image.width) if lying else image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header is read; whatever goes wrong with it is an :class:`InputError`."""
    # Pillow warns of harmless oddities, which is of no use to the caller of a batch.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                yield image
        except Image.DecompressionBombError as error:
            raise InputError(f"{path}: refused, too many pixels; scale it down first ({error})") from error
        except OSError as error:
            heif = path.suffix.lower() in _HEIF_SUFFIXES and not error.strerror
            what = error.strerror or ("HEIC" if heif else "not an image, or damaged")
            todo = "convert it to JPEG" if heif else "check or replace it"
            raise InputError(f"{path}: cannot be read ({what}); {todo}") from error
        # Pillow's decoders answer damaged data with nearly any exception.
        except Exception as error:
            raise InputError(f"{path}: damaged or of an unknown kind ({error}); replace it") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit values have no agreed brightness, save it with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return np.array(image.convert("RGB"), dtype=np.uint8)


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The images that folders (with their subfolders), files and glob patterns stand for.

    In the order given, and in natural order (``img2`` before ``img10``) within each. A file reached
    twice counts once. Hidden files are left out, as are those in a folder that are no images by their
    suffix.

    Returns:
        Pairs of the path and the name: the path relative to the folder, or to the part of the pattern
        before its first wildcard, with forward slashes; the bare file name for a file.

    Raises:
        InputError: an input does not exist or holds no image, or two images would have one name.
    """
    found: dict[Path, str] = {}
    for given in inputs:
        paths, root = _expand(given)
        if not paths:
            raise InputError(f"{given}: no image there; images end in {', '.join(sorted(IMAGE_SUFFIXES))}")
        for path in paths:
            found.setdefault(path, path.relative_to(root).as_posix())
    first_with: dict[str, Path] = {}
    for path, name in found.items():
        other = first_with.setdefault(name, path)
        if other != path:
            raise InputError(
                f"{other} and {path} would both be called {name}; give the folder that holds both"
            )
    return list(found.items())


def _expand(given: str | Path) -> tuple[list[Path], Path]:
    """The files that one input stands for, sorted, and the folder that their names are relative to."""
    if not str(given):
        # To Path that is the folder one is in.
        raise InputError("an input without a name; check what the shell made of the command")
    path = Path(given)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{given}: cannot be read ({error.strerror}); check the name") from error
    if path.is_dir():
        return _natural(p for p in path.rglob("*") if _is_image(p, path)), path
    if path.exists():
        return [path], path.parent
    wild = next((i for i, part in enumerate(path.parts) if _GLOB.search(part)), None)
    if wild is None:
        raise InputError(f"{given}: no such file or folder; check the name")
    root = Path(*path.parts[:wild])
    return _natural(p for p in root.glob("/".join(path.parts[wild:])) if _is_image(p, root)), root


def _is_image(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    # A link to what is gone is named when it is read.
    is_there = path.is_file() or (path.is_symlink() and not path.exists())
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and is_there


def _natural(paths: Iterator[Path]) -> list[Path]:
    return sorted(sorted(paths), key=natural_key)


def natural_key(path: PurePath) -> list[list[str | int]]:
    """Sorts ``img2`` before ``img10``."""
    # Splitting at digits alternates text and numbers, so like is compared with like.
    return [
        [int(piece) if i % 2 else piece.casefold() for i, piece in enumerate(re.split(r"(\d+)", part))]
        for part in path.parts
    ]


def describe_failures(failures: Sequence[tuple[str, str]], count: int | None) -> str | None:
    """How many of so many images could not be read, and why, of many the first; ``None`` if all could."""
    if not failures:
        return None
    many = len(failures) > FAILURES_NAMED
    reasons = f", for one {failures[0][1]}" if many else f": {'; '.join(reason for _, reason in failures)}"
    return f"{len(failures)} of {count} images could not be read{reasons}"


class ImageSource:
    """Image files as frames; index and name tell which, the time is always 0.

    An image that cannot be read is left out, its index with it; ``failures`` and ``damage`` tell.

    Args:
        images: paths and names, as :func:`find_images` gives them.
        name: of the whole set, as it goes into results.
        first: index of the first of ``images``, which may be a part of the set.

    Attributes:
        failures: after iterating, name and reason of each image that could not be read.
    """

    def __init__(self, images: Sequence[tuple[Path, str]], name: str = "images", first: int = 0) -> None:
        self._images = images
        self._name, self._first = name, first
        self._frames: Iterator[Frame] | None = None
        self.failures: list[tuple[str, str]] = []

    @property
    def info(self) -> SourceInfo:
        """Size, rate and time base are unknown: each image has its own size."""
        return SourceInfo(self._name, 0, 0, None, len(self._images))

    @property
    def damage(self) -> str | None:
        """After iterating: how many images could not be read, and why, or ``None``."""
        return describe_failures(self.failures, len(self._images))

    def __enter__(self) -> Self:
        self._frames = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames = None

    def __iter__(self) -> Iterator[Frame]:
        """Goes on where an earlier iteration stopped."""
        if self._frames is None:
            raise RuntimeError("a source must be entered (with ...) before it is used")
        return self._frames

    def _read(self) -> Iterator[Frame]:
        for index, (path, name) in enumerate(self._images, self._first):
            try:
                image = read_image(path)
            except InputError as error:
                self.failures.append((name, str(error)))
                continue
            yield Frame(image, index, 0.0, name)
