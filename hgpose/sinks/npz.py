"""Keypoints as NumPy arrays in one ``.npz`` archive."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from hgpose.atomic import atomic_path, output_errors
from hgpose.sinks.file import FileSink
from hgpose.sinks.spool import Spool, SpooledFrame
from hgpose.types import Frame, Poses


class NpzSink(FileSink):
    """Writes an archive for ``numpy.load``, of T frames with P people on all of them together.

    A frame: ``frame`` ``(T,)`` int64, ``time_s`` ``(T,)`` float64, of an image set ``name`` ``(T,)``,
    ``people`` ``(T,)`` int64, how many are on it. A person, frame after frame: ``row`` ``(P,)`` int64, the
    position of its frame among the T, ``id`` ``(P,)`` int64 (-1 where nobody follows people), ``score``
    ``(P,)``, ``box`` ``(P, 4)`` xyxy, ``keypoints`` ``(P, K, 3)`` x, y, score, all float64. And
    ``keypoint_names`` ``(K,)``. Numbers are those of :func:`hgpose.sinks.record.people`.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with (
            atomic_path(self.path, self._run.overwrite) as part,
            Spool(self.path, len(self._run.keypoint_set)) as self._spool,
        ):
            self._longest_name = 1
            yield
            with output_errors(self.path):
                self._write_archive(part)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame; see :meth:`FileSink.write`."""
        self._spool.add(frame, poses)
        self._longest_name = max(self._longest_name, len(frame.name))

    def _write_archive(self, path: Path) -> None:
        frames, people = (self._spool.frame_count,), (self._spool.person_count,)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as self._archive:
            self._add("frame", np.dtype("<i8"), frames, lambda frame: frame.index)
            self._add("time_s", np.dtype("<f8"), frames, lambda frame: frame.time_s)
            self._add("people", np.dtype("<i8"), frames, lambda frame: len(frame.people))
            if self._run.is_image_set:
                names = np.dtype(f"<U{self._longest_name}")
                self._add("name", names, frames, lambda frame: frame.name)
            self._add("row", np.dtype("<i8"), people, lambda frame: [frame.row] * len(frame.people))
            for field in self._spool.person_dtype.names or ():
                dtype = self._spool.person_dtype[field]
                self._add(field, dtype.base, people + dtype.shape, partial(_field, field))
            keypoint_names = np.array(self._run.keypoint_set.names)
            with self._archive.open("keypoint_names.npy", "w") as file:
                npy.write_array(file, keypoint_names, allow_pickle=False)

    def _add(
        self,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        values: Callable[[SpooledFrame], Any],
    ) -> None:
        """Writes one array piece by piece: ``values`` of each frame."""
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for frame in self._spool:
                file.write(np.asarray(values(frame), dtype).tobytes())


def _field(name: str, frame: SpooledFrame) -> Any:
    return frame.people[name]
