"""What a batch is made of: the videos and folders of images that its inputs stand for."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hgpose.errors import InputError, OptionsError
from hgpose.places import as_path, file_system, is_uri, remote, shown
from hgpose.sources.images import IMAGE_SUFFIXES, natural_key
from hgpose.sources.video import VIDEO_SUFFIXES

_WILD = re.compile(r"[*?\[]")
_LIST_SUFFIX = ".txt"
_SET_STEM = "keypoints"


@dataclass(frozen=True)
class Item:
    """A video, or the images of one folder.

    Attributes:
        name: of its results, relative to the folder for results and without suffix.
        label: as messages name it.
        source: as results name it.
        is_set: whether it is a set of images.
        files: path or URI, and name, of the video or of each image.
    """

    name: str
    label: str
    source: str
    is_set: bool
    files: tuple[tuple[str, str], ...]

    @property
    def locations(self) -> list[str]:
        """Paths and URIs of its files."""
        return [location for location, _ in self.files]

    @property
    def is_called_in_full(self) -> bool:
        """Whether its name is all of the video's, for there is another of the same stem."""
        name = PurePosixPath(self.name).name
        return not self.is_set and name == self.source != PurePosixPath(self.source).stem


#: A file: its path or URI, and its path below the folder that is mirrored.
_File = tuple[str, str]


def find_items(inputs: Sequence[str], out: str) -> tuple[list[Item], list[tuple[str, str]]]:
    """The videos and sets of images that inputs stand for.

    Args:
        inputs: folders (with all below), files, glob patterns, text files with an input a line, or URIs
            of the same. Names of results are relative to a folder, to the part of a pattern before its
            first wildcard, or to the folder that all files of a list have in common. Of several inputs
            each folder keeps its own name. Videos of one folder that differ in nothing but their suffix
            keep it.
        out: folder for results; what is in it is no input unless it is named.

    Returns:
        The items, and name and reason of each input that is missing, empty or cannot be read.

    Raises:
        OptionsError: an input is a stream, or the package for a URI is not installed.
    """
    finder = _Finder(out)
    found: dict[str, str] = {}
    for given in map(as_path, inputs):
        files = finder.list_of(given) if _is_list(given) else finder.find(given, len(inputs) > 1)
        for location, name in files:
            found.setdefault(location, name)
    return _items(found.items(), finder.fail), finder.failures


def _is_list(given: str) -> bool:
    # Path.is_file fails on a name that is too long for the file system.
    return PurePosixPath(given).suffix.lower() == _LIST_SUFFIX and (is_uri(given) or os.path.isfile(given))  # noqa: PTH113


def _items(found: Iterable[_File], fail: Callable[[str, str], None]) -> list[Item]:
    items: list[Item] = []
    sets: dict[str, dict[str, str]] = {}
    videos: list[tuple[str, PurePosixPath]] = []
    called: dict[str, set[str]] = {}
    for location, name in found:
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images = sets.setdefault(str(path.parent), {})
            if (other := images.setdefault(path.name, location)) != location:
                fail(location, f"{shown(location)}: would be called {name}, as {shown(other)} is; rename one")
            called.setdefault(str(path.with_name(_SET_STEM)), set()).add(_SET_STEM)
        else:
            videos.append((location, path))
            called.setdefault(str(path.with_suffix("")), set()).add(path.name)
    for location, path in videos:
        stem = str(path.with_suffix(""))
        name = stem if len(called[stem]) == 1 else str(path)
        items.append(Item(name, shown(location), path.name, False, ((location, path.name),)))
    for folder, images in sets.items():
        names = sorted(images, key=lambda name: (natural_key(PurePosixPath(name)), name))
        label = shown(images[names[0]]).removesuffix(names[0]).rstrip("/") or "."
        files = tuple((images[name], name) for name in names)
        source = "images" if folder == "." else folder
        items.append(Item(str(PurePosixPath(folder, _SET_STEM)), label, source, True, files))
    # Of two that have one name all the same, the first is done: that must not depend on the order given.
    return sorted(items, key=lambda item: [natural_key(PurePosixPath(n)) for n in (item.name, item.label)])


def _wanted(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


class _Finder:
    """Finds files; what cannot be found is noted and stops nothing.

    Args:
        out: folder for results, as a path or URI.

    Attributes:
        failures: name and reason.
    """

    def __init__(self, out: str) -> None:
        self.failures: list[tuple[str, str]] = []
        self._out = out

    def find(self, given: str, several: bool) -> list[_File]:
        """The files of an input that is no list."""
        given = as_path(given)
        if given == "-" or given.lower().startswith(("rtsp://", "rtsps://")):
            raise OptionsError(f"{shown(given)}: a stream is no part of a batch; use hgpose video")
        if not given:
            # To Path that is the folder one is in.
            self.fail(given, "an input without a name; check what the shell made of the command")
            return []
        before = len(self.failures)
        try:
            files = self._remote(given, several) if is_uri(given) else self._local(given, several)
        except InputError as error:
            self.fail(given, str(error))
            return []
        except OSError as error:
            # A name that is too long, a folder that may not be entered.
            self.fail(given, f"{given}: cannot be read ({error.strerror}); check the name and its rights")
            return []
        if not files and len(self.failures) == before:
            self.fail(given, f"{shown(given)}: no video or image there")
        return files

    def list_of(self, given: str) -> list[_File]:
        """The files of a text file's lines."""
        try:
            if is_uri(given):
                system, path = file_system(given)
                data = remote(given, lambda: bytes(system.cat_file(path)))
            else:
                data = Path(given).read_bytes()
        except (OSError, InputError) as error:
            self.fail(given, f"{shown(given)}: cannot be read as a list of inputs ({error})")
            return []
        lines = [line.strip() for line in os.fsdecode(data).removeprefix("\ufeff").split("\n")]
        if not any(lines):
            self.fail(given, f"{shown(given)}: an empty list; write an input a line")
        found = [location for line in lines if line for location, _ in self.find(line, several=False)]
        return list(zip(found, _below_common(found), strict=True))

    def fail(self, name: str, reason: str) -> None:
        """Notes what cannot be found."""
        self.failures.append((shown(name), reason))

    def _local(self, given: str, several: bool) -> list[_File]:
        path = Path(given)
        if path.is_dir():
            return self._walked(path, path.resolve().name if several else "")
        if path.exists():
            return [(given, path.name)]
        wild = next((i for i, part in enumerate(path.parts) if _WILD.search(part)), None)
        if wild is None:
            raise InputError(f"{given}: no such file or folder; check the name")
        root = Path(*path.parts[:wild])
        files = []
        # Path.glob knows no absolute patterns.
        for match in sorted(glob.glob(given, recursive=True)):  # noqa: PTH207
            found, name = Path(match), Path(match).relative_to(root).as_posix()
            if found.is_dir():
                files += self._walked(found, name)
            elif _wanted(name):
                files.append((match, name))
        return files

    def _walked(self, root: Path, prefix: str) -> list[_File]:
        """All videos and images below a folder, hidden ones and results left out."""
        results = None if is_uri(self._out) else Path(self._out).resolve()

        def refuse(error: OSError) -> None:
            self.fail(
                str(error.filename),
                f"{error.filename}: cannot be read ({error.strerror}); check it and its rights",
            )

        files = []
        for folder, folders, names in os.walk(root, onerror=refuse):
            here = Path(folder)
            folders[:] = sorted(
                f for f in folders if not f.startswith(".") and (here / f).resolve() != results
            )
            for name in sorted(names):
                if name.startswith(".") or not _wanted(name):
                    continue
                try:
                    regular = stat.S_ISREG((here / name).stat().st_mode)
                except OSError as error:
                    # For one, a link to what is not there.
                    refuse(error)
                    continue
                if regular:
                    below = (here / name).relative_to(root).as_posix()
                    files.append((str(here / name), str(PurePosixPath(prefix, below))))
        return files

    def _remote(self, given: str, several: bool) -> list[_File]:
        system, path = file_system(given)
        # An object may have the name of a pattern.
        if remote(given, lambda: system.isfile(path)):
            return [(given, PurePosixPath(path).name)]
        wild = _WILD.search(path)
        root = path[: max(path.rfind("/", 0, wild.start()), 0)] if wild else path
        found = remote(given, lambda: system.glob(path) if wild else system.find(path))
        if not found and not wild and not remote(given, lambda: system.exists(path)):
            raise InputError(f"{shown(given)}: no such file or folder; check the name")
        results = f"{file_system(self._out)[1]}/" if is_uri(self._out) else None
        prefix = PurePosixPath(root).name if several and not wild else ""
        files = []
        for key in sorted(found):
            name = key[len(root) :].strip("/")
            parts = PurePosixPath(name).parts
            is_result = results and key.startswith(results) and not f"{root}/".startswith(results)
            if not _wanted(name) or is_result or any(p.startswith(".") and p != ".." for p in parts):
                continue
            location = system.unstrip_protocol(key)
            if ".." in parts:
                self.fail(location, f"{shown(location)}: its name leads out of the folder; rename it")
            else:
                files.append((location, str(PurePosixPath(prefix, name))))
        return files


def _below_common(locations: Sequence[str]) -> list[str]:
    """Each location relative to the folder that all of its kind have in common."""
    parts = [
        tuple(location.split("/")) if is_uri(location) else Path(location).absolute().parts
        for location in locations
    ]
    common: dict[bool, tuple[str, ...]] = {}
    for location, path in zip(locations, parts, strict=True):
        before = common.setdefault(is_uri(location), path[:-1])
        shared = next((i for i, (a, b) in enumerate(zip(before, path[:-1], strict=False)) if a != b), None)
        common[is_uri(location)] = before[: min(len(before), len(path) - 1) if shared is None else shared]
    return [
        str(PurePosixPath(*path[len(common[is_uri(location)]) :]))
        for location, path in zip(locations, parts, strict=True)
    ]
