"""Keypoints as OpenPose writes them: a folder with a JSON file a frame."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from hgpose.sinks.folder import FolderSink
from hgpose.sinks.order import Order
from hgpose.sinks.record import Person, Run, people
from hgpose.types import Frame, Poses

#: OpenPose's BODY_25, in our names.
BODY_25 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip

_NO_PARTS: dict[str, list[float]] = {
    f"{part}_keypoints_{dimensions}": []
    for dimensions in ("2d", "3d")
    for part in ("pose", "face", "hand_left", "hand_right")
}


class OpenPoseSink(FolderSink):
    """Writes ``<stem>_<frame, 12 digits>_keypoints.json``, or ``<image>_keypoints.json`` for an image.

    In OpenPose's BODY_25 order: the middle of the hips is computed, a neck too where the set has none;
    toes and heels, and what else is missing, are 0, 0, 0. A frame with nobody has a file, too.
    """

    def __init__(self, path: Path, stem: str, run: Run) -> None:
        super().__init__(path, stem, run)
        self._body = Order(BODY_25, run.keypoint_set)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Writes the file of one frame; see :meth:`FileSink.write`."""
        if self._run.is_image_set:
            name = self._image_file(PurePosixPath(frame.name), "_keypoints.json")
        else:
            name = f"{self._stem}_{frame.index:012d}_keypoints.json"
        document = {"version": 1.3, "people": [self._person(person) for person in people(poses)]}
        self._write_text(name, json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")

    def _person(self, person: Person) -> dict[str, Any]:
        points = [v for point in self._body(person["keypoints"]) for v in point]
        person_id = -1 if person["id"] is None else person["id"]
        return {"person_id": [person_id]} | _NO_PARTS | {"pose_keypoints_2d": points}
