"""What results were made from, so that a later run knows what is done and what has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from hgpose.options import EstimatorOptions, VideoOptions
from hgpose.places import file_system, is_uri, remote
from hgpose.weights import DEFAULT_FINDER, find_weights, read_card

Origin = dict[str, Any]

#: What may differ while the keypoints stay the same.
_OF_FILES = {"save", "style", "overwrite", "resume"}
#: Raised when keypoints come out otherwise than before for the same options.
_REVISION = 2


def identity(locations: Sequence[str]) -> str:
    """A name for the present state of some files: names, sizes and times; behind a URI what the store says.

    Not the folder they lie in: that may be called by another path, or have moved.

    Raises:
        InputError: a store does not answer, or a file behind a URI is not there.
    """
    digest = hashlib.sha256()
    for location in locations:
        digest.update(json.dumps([PurePosixPath(location).name, *_state(location)]).encode())
    return digest.hexdigest()


def _state(location: str) -> list[str]:
    if is_uri(location):
        system, path = file_system(location)
        info = remote(location, lambda: system.info(path))
        return [str(info.get(key)) for key in ("size", "ETag", "mtime", "LastModified", "last_modified")]
    try:
        found = Path(location).stat()
    except OSError:
        # Whoever reads it will say so.
        return []
    return [str(found.st_size), str(found.st_mtime_ns)]


def origin(how: EstimatorOptions, what: VideoOptions, inputs: Sequence[str]) -> Origin:
    """All that the keypoints of some files depend on.

    Raises:
        InputError: as of :func:`identity`.
        WeightsError: weights are missing.
    """
    finder = read_card(find_weights(DEFAULT_FINDER)).sha256 if how.detector == "person" else None
    options = {key: value for key, value in asdict(what).items() if key not in _OF_FILES}
    return {
        "revision": _REVISION,
        "input": identity(inputs),
        "weights": read_card(find_weights(how.weights)).sha256,
        "finder weights": finder,
        "boxes": identity([str(how.boxes_file)]) if how.detector.startswith("boxes:") else None,
        "options": asdict(how) | options,
    }


def read_origin(data: bytes | None) -> Origin | None:
    """An origin that was written as JSON, or ``None`` if that is damaged."""
    try:
        found = json.loads(data or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was, in words; empty if all is."""
    found = []
    for key in now:
        was, value = before.get(key), now[key]
        if was == value or json.loads(json.dumps(value)) == was:
            continue
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            found.append(differences(was, value))
        elif isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2:
            found.append(f"another {key}")
        else:
            found.append(f"{key} was {was}, is {value}")
    return ", ".join(found)
