"""Folders on this machine and behind URIs (fsspec): inputs come from them, results go there whole."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hgpose.atomic import atomic_path, output_errors
from hgpose.errors import InputError, OptionsError, OutputError

T = TypeVar("T")

_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
#: Schemes of paths on this machine.
_OF_PATHS = {"file", "local"}
#: Schemes of stores in which an object appears when its upload is complete, and not at all if it is cut.
#: There, moving is copying, so files are put where they belong at once.
_WHOLE_OR_NOT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
#: What of a URI belongs in no message: user and password, query.
_SECRETS = re.compile(r"(?<=//)[^/]*@|[?#].*", re.DOTALL)


def is_uri(location: str) -> bool:
    """Whether it is ``s3://...`` and the like, rather than a path."""
    return _URI.match(location) is not None


def as_path(location: str) -> str:
    """``file:///folder`` as the path that it is; other URIs with their scheme in small letters."""
    if not is_uri(location):
        return location
    scheme, rest = location.split("://", 1)
    location = f"{scheme.lower()}://{rest}"
    return str(file_system(location)[1]) if scheme.lower() in _OF_PATHS else location


def shown(location: str) -> str:
    """A path or URI as messages show it: without password and query."""
    return _SECRETS.sub("", location) if is_uri(location) else location


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system of a URI, and the path in it.

    Raises:
        OptionsError: a scheme that fsspec does not know, whose package is missing, that needs more than a
            URI, or that is of the memory of one process.
        InputError: its host does not answer.
    """
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    scheme = uri.split(":")[0]
    try:
        # A listing kept from before knows nothing of what other machines write.
        system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        extra = "pip install 'hgpose[s3]'" if scheme == "s3" else str(error)
        raise OptionsError(f"{shown(uri)}: a package is missing: {extra}") from None
    except ValueError as error:
        raise OptionsError(f"{shown(uri)}: {error}") from None
    except OSError as error:
        raise InputError(f"{shown(uri)}: cannot be reached ({_reason(error)})") from error
    # Those that need arguments besides a URI say so in ways of their own.
    except Exception as error:
        reason = f"{scheme}:// cannot be opened by a URI alone ({_reason(error)})"
        raise OptionsError(f"{shown(uri)}: {reason}") from error
    if isinstance(system, MemoryFileSystem):
        raise OptionsError(
            f"{shown(uri)}: {scheme}:// is the memory of one process, gone with it and unseen by workers; "
            "take a folder or a store"
        )
    return system, path.rstrip("/")


def remote(location: str, action: Callable[[], T]) -> T:
    """What ``action`` gives that reads behind a URI.

    Raises:
        InputError: it is not there, or the store or the network refuses.
    """
    try:
        return action()
    except FileNotFoundError:
        raise InputError(f"{shown(location)}: no such file or folder; check the name") from None
    # Each store has exceptions of its own.
    except Exception as error:
        raise InputError(f"{shown(location)}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def local_files(locations: Sequence[str]) -> Iterator[list[Path]]:
    """Files to read: paths as they are, those behind URIs copied to a folder that vanishes at the end.

    A file that cannot be copied is a path that does not exist.
    """
    if not any(is_uri(location) for location in locations):
        yield [Path(location) for location in locations]
        return
    with tempfile.TemporaryDirectory(prefix="hgpose-") as folder:
        files = []
        for i, location in enumerate(locations):
            file = Path(location)
            if is_uri(location):
                system, path = file_system(location)
                file = Path(folder, str(i), Path(path).name)
                file.parent.mkdir()
                # Whoever reads it finds it missing, and goes on to the next.
                with suppress(InputError):
                    remote(location, partial(system.get_file, path, str(file)))
            files.append(file)
        yield files


class Place(ABC):
    """A folder for results; names are relative paths with forward slashes.

    Under its name a file is whole: what writes it fails, or is killed, before it stands there.
    """

    @staticmethod
    def of(location: str | Path) -> Place:
        """The folder of a path or URI; it need not exist yet."""
        return _Remote(str(location)) if is_uri(str(location)) else _Local(Path(location))

    @abstractmethod
    def below(self, name: str) -> Place:
        """A folder in this one."""

    @abstractmethod
    def files(self) -> list[str]:
        """All files in it and its folders, in no order; none if there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """What a file holds, or ``None`` if there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces a file, at once."""

    @abstractmethod
    def move_in(self, path: Path, name: str) -> None:
        """Moves a finished file or folder of this machine here, in place of what is called so."""

    @abstractmethod
    def remove(self, name: str = "") -> None:
        """Removes a file or a folder with all in it; it need not exist."""

    @abstractmethod
    def workshop(self) -> Path:
        """An empty folder of this machine from which files are moved in cheaply; to be removed after use."""


class _Local(Place):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def below(self, name: str) -> Place:
        return _Local(self._folder / name)

    def files(self) -> list[str]:
        return [
            Path(folder, name).relative_to(self._folder).as_posix()
            for folder, _, names in os.walk(self._folder)
            for name in names
        ]

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{self._folder / name}: cannot be read ({error.strerror})") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with atomic_path(path, overwrite=True) as part, output_errors(path):
            part.write_bytes(data)

    def move_in(self, path: Path, name: str) -> None:
        final = self._folder / name
        with output_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.is_dir() and not final.is_symlink():
                if path.is_file():
                    raise OutputError(
                        f"cannot write {final}: a folder of that name is in the way; choose another -o"
                    )
                # No call replaces a folder that is not empty.
                final.replace(path.with_name(f"{path.name}.old"))
            path.replace(final)

    def remove(self, name: str = "") -> None:
        path = self._folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def workshop(self) -> Path:
        with output_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._folder, prefix="making-"))


class _Remote(Place):
    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._system, self._path = file_system(self._uri)
        self._is_whole_or_not = self._uri.split(":")[0] in _WHOLE_OR_NOT

    def __str__(self) -> str:
        return shown(self._uri)

    def __reduce__(self) -> tuple[Any, ...]:
        # A connection cannot be handed to another process.
        return _Remote, (self._uri,)

    def below(self, name: str) -> Place:
        return _Remote(f"{self._uri}/{name}")

    def files(self) -> list[str]:
        def find() -> list[str]:
            return [name[len(self._path) + 1 :] for name in self._system.find(self._path)]

        return remote(self._uri, find)

    def read(self, name: str) -> bytes | None:
        def cat() -> bytes | None:
            try:
                return bytes(self._system.cat_file(f"{self._path}/{name}"))
            except FileNotFoundError:
                return None

        return remote(f"{self._uri}/{name}", cat)

    def write(self, name: str, data: bytes) -> None:
        with self._writing(name), self._making(f"{self._path}/{name}") as path:
            self._system.pipe_file(path, data)

    def move_in(self, path: Path, name: str) -> None:
        files = [path]
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            self.remove(name)
        for file in files:
            inside = file.relative_to(path).as_posix()
            target = name if inside == "." else f"{name}/{inside}"
            with self._writing(target), self._making(f"{self._path}/{target}") as made:
                self._system.put_file(str(file), made)

    def remove(self, name: str = "") -> None:
        path = f"{self._path}/{name}".rstrip("/")
        with self._writing(name):
            if self._system.exists(path):
                self._system.rm(path, recursive=True)

    def workshop(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="hgpose-"))

    @contextmanager
    def _making(self, final: str) -> Iterator[str]:
        """Where to write a file that shall be ``final``."""
        if self._is_whole_or_not:
            yield final
            return
        folder = final.rpartition("/")[0]
        part = f"{folder}/.hgpose-{uuid.uuid4().hex}.part"
        self._system.makedirs(folder, exist_ok=True)
        try:
            yield part
            # Not all replace a file by moving; for a moment there is none.
            if self._system.exists(final):
                self._system.rm_file(final)
            self._system.mv(part, final)
        except BaseException:
            # Where nothing can be written nothing can be removed.
            with suppress(Exception):
                self._system.rm_file(part)
            raise

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputError(
                f"cannot write {self}/{name}: {_reason(error)}; check that it exists and may be written to"
            ) from error
