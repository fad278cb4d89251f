"""The kinds of other tools: COCO results, AlphaPose, MMPose, OpenPose, YOLO and DeepLabCut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hgpose.errors import InputError
from hgpose.keypoints import COCO17, KEYPOINT_SETS, KeypointSet
from hgpose.results.record import (
    UNKNOWN,
    ResultFrame,
    Results,
    checked_text,
    make_poses,
    named_set,
    parsed,
    reading,
    reading_row,
    set_of,
    told_by_first_person,
    whole_lines,
)
from hgpose.sinks.openpose import BODY_25
from hgpose.sources.images import natural_key

_BODY_25 = named_set("body_25", BODY_25)

#: OpenPose's COCO order is BODY_25 without the middle of the hips and the feet.
_COCO_18 = named_set("coco_18", BODY_25[:8] + BODY_25[9:19])

_OPENPOSE_SETS = (_BODY_25, _COCO_18)

#: Numbers that OpenPose and YOLO add to the name of a video.
_OPENPOSE_FRAME, _YOLO_FRAME = re.compile(r"_(\d{12})$"), re.compile(r"_(\d+)$")

_OPENPOSE_ENDING = "_keypoints.json"


def open_list(path: Path, elements: Iterator[dict[str, Any]]) -> Results:
    """COCO results, AlphaPose or MMPose, from the elements of their list."""
    first = next(elements, None)
    if first is None:
        return Results(path, "coco", COCO17, iter(()))
    everything = chain([first], elements)
    if "instances" in first:
        return _open_mmpose(path, everything)
    if "image_id" not in first:
        raise InputError(UNKNOWN.format(path=path))
    keypoint_set = set_of(len(first["keypoints"]) // 3, path, KEYPOINT_SETS.values())
    return Results(path, "coco", keypoint_set, _coco_frames(everything, keypoint_set))


def _coco_frames(people: Iterator[dict[str, Any]], keypoint_set: KeypointSet) -> Iterator[ResultFrame]:
    for image, group in groupby(people, key=itemgetter("image_id")):
        found = list(group)
        poses = make_poses(
            keypoint_set,
            [person["keypoints"] for person in found],
            [_xyxy(person.get("box") or person.get("bbox")) for person in found],
            [person["score"] for person in found],
            [idx if isinstance(idx := person.get("idx"), int) else -1 for person in found],
            missing_is_zero=True,
        )
        if isinstance(image, str):
            # AlphaPose numbers the frames of a video so.
            stem = PurePosixPath(image).stem
            yield ResultFrame(int(stem) if stem.isdecimal() else -1, float("nan"), image, None, poses)
        else:
            yield ResultFrame(int(image), float("nan"), found[0].get("file_name", ""), None, poses)


def _xyxy(xywh: list[float] | None) -> list[float | None]:
    if xywh is None:
        return [None] * 4
    x, y, width, height = xywh
    return [x, y, x + width, y + height]


def _open_mmpose(path: Path, frames: Iterator[dict[str, Any]]) -> Results:
    def tell(frame: dict[str, Any]) -> KeypointSet | None:
        people = frame["instances"]
        return set_of(len(people[0]["keypoints"]), path, KEYPOINT_SETS.values()) if people else None

    def read(frame: dict[str, Any], keypoint_set: KeypointSet) -> ResultFrame:
        people = frame["instances"]
        poses = make_poses(
            keypoint_set,
            [
                [[*point, score] for point, score in zip(p["keypoints"], p["keypoint_scores"], strict=True)]
                for p in people
            ],
            [p["bbox"][0] if "bbox" in p else [None] * 4 for p in people],
            [p.get("bbox_score") for p in people],
            [p.get("track_id", -1) for p in people],
            missing_is_zero=True,
        )
        return ResultFrame(frame["frame_id"], float("nan"), frame.get("file_name", ""), None, poses)

    keypoint_set, frames = told_by_first_person(frames, tell, COCO17)
    return Results(path, "mmpose", keypoint_set, (read(frame, keypoint_set) for frame in frames))


def _files_of_frames(folder: Path, ending: str) -> list[tuple[Path, str]]:
    """Files of a folder and those below, each with its path without ``ending``, in the order of frames."""
    names = [(file, file.relative_to(folder).as_posix()) for file in folder.rglob(f"*{ending}")]
    found = [(file, name.removesuffix(ending)) for file, name in names]
    # Images were sorted when they had a suffix.
    return sorted(found, key=lambda pair: natural_key(PurePosixPath(f"{pair[1]}.")))


def open_openpose(path: Path) -> Results:
    """A folder of OpenPose's, a file a frame."""
    files = _files_of_frames(path, _OPENPOSE_ENDING)
    if not files:
        raise InputError(f"{path}: no OpenPose results in it, whose names end in {_OPENPOSE_ENDING}")

    def load(file: Path, name: str) -> tuple[str, list[dict[str, Any]]]:
        with reading(file):
            return name, json.loads(file.read_bytes())["people"]

    def tell(frame: tuple[str, list[dict[str, Any]]]) -> KeypointSet | None:
        people = frame[1]
        return set_of(len(people[0]["pose_keypoints_2d"]) // 3, path, _OPENPOSE_SETS) if people else None

    def read(name: str, people: list[dict[str, Any]], keypoint_set: KeypointSet) -> ResultFrame:
        poses = make_poses(
            keypoint_set,
            [person["pose_keypoints_2d"] for person in people],
            [[None] * 4 for _ in people],
            [None for _ in people],
            [person.get("person_id", [-1])[0] for person in people],
            missing_is_zero=True,
        )
        number = _OPENPOSE_FRAME.search(name)
        return ResultFrame(int(number[1]) if number else -1, float("nan"), name, None, poses)

    keypoint_set, frames = told_by_first_person((load(*file) for file in files), tell, _BODY_25)
    return Results(
        path, "openpose", keypoint_set, (read(name, people, keypoint_set) for name, people in frames)
    )


def open_yolo(path: Path) -> Results:
    """A folder with Ultralytics' ``labels``, a file a frame."""
    named = _yolo_names(path / "data.yaml")

    def load(file: Path, name: str) -> tuple[Path, str, list[list[str]]]:
        with reading(file), file.open(encoding="utf-8", newline="") as lines:
            return file, name, [line.split() for line in whole_lines(file, lines)]

    def tell(frame: tuple[Path, str, list[list[str]]]) -> KeypointSet | None:
        people = frame[2]
        return set_of((len(people[0]) - 5) // 3, path, KEYPOINT_SETS.values()) if people else None

    def read(file: Path, name: str, people: list[list[str]], keypoint_set: KeypointSet) -> ResultFrame:
        last = 5 + 3 * len(keypoint_set)
        with reading(file):
            # After the points a score, or an id, or both.
            if any(not last <= len(cells) <= last + 2 for cells in people):
                raise ValueError(f"a line of {len(keypoint_set)} keypoints has {last} to {last + 2} numbers")
            boxes = np.array([cells[1:5] for cells in people], np.float64).reshape(-1, 4)
            poses = make_poses(
                keypoint_set,
                np.array([cells[5:last] for cells in people], np.float64),
                np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2]),
                [None for _ in people],
                [int(cells[-1]) if len(cells) > last and cells[-1].isdecimal() else -1 for cells in people],
                missing_is_zero=True,
            )
            number = _YOLO_FRAME.search(name)
            return ResultFrame(int(number[1]) - 1 if number else -1, float("nan"), name, None, poses)

    every = (load(*file) for file in _files_of_frames(path / "labels", ".txt"))
    keypoint_set, frames = (named, every) if named else told_by_first_person(every, tell, COCO17)
    return Results(path, "yolo", keypoint_set, (read(*frame, keypoint_set) for frame in frames))


def _yolo_names(file: Path) -> KeypointSet | None:
    """The keypoints that a description of a data set names as hgpose does; Ultralytics' own have no names."""
    if file.exists():
        with reading(file):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key == "kpt_names" and value.strip().startswith("{"):
                    return named_set("unknown", tuple(map(checked_text, json.loads(value)["0"])))
    return None


def open_dlc(path: Path, table: Any) -> Results:
    """DeepLabCut's CSV, whose first level was read from ``table``."""
    levels: dict[str, list[str]] = {}
    for row in table:
        levels[row[0]] = row[1:]
        if row[0] == "coords":
            break
    parts, coords = levels.get("bodyparts", []), levels.get("coords", [])
    if not parts or coords != ["x", "y", "likelihood"] * (len(parts) // 3):
        raise InputError(f"{path}: not DeepLabCut's predictions, which are x, y, likelihood of bodyparts")
    # That of one animal does not name it.
    individuals = list(dict.fromkeys(levels.get("individuals", [])))
    count = len(individuals) or 1
    names = tuple(parts[: len(parts) // count : 3])
    if tuple(parts[::3]) != names * count:
        raise InputError(f"{path}: its individuals have not all the same bodyparts")
    numbers = [re.search(r"\d+$", individual) for individual in individuals]
    ids = [int(number[0]) for number in numbers if number]
    if len(set(ids)) < len(individuals):
        ids = list(range(1, len(individuals) + 1))
    keypoint_set = named_set("unknown", names)

    def frames() -> Iterator[ResultFrame]:
        for key, *cells in table:
            with reading_row(path, table):
                people = parsed(cells).reshape(count, len(names), 3)
            seen = np.flatnonzero(~np.isnan(people).all(axis=(1, 2)))
            poses = make_poses(
                keypoint_set,
                people[seen],
                [[None] * 4 for _ in seen],
                [None for _ in seen],
                [ids[i] if ids else -1 for i in seen],
            )
            index, name = (int(key), "") if key.isdecimal() else (-1, key)
            yield ResultFrame(index, float("nan"), name, None, poses)

    return Results(path, "dlc", keypoint_set, frames())
