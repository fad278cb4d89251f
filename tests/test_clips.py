"""The shipped weights on real clips of one person: found while there, nobody seen when gone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hgpose.estimate import load_estimator
from hgpose.options import VideoOptions
from hgpose.process import process_video

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "video"
#: Frames, from and to, on which any part of a person is seen, be it a heel or some hair at the edge.
ANY_PART = {
    "one_by_one": [(60, 197), (227, 448), (502, 697), (745, 868), (921, 1200), (1235, 1359)],
    "squats": [(0, 64)],
}
#: Those on which head and shoulders, or a leg and the hips, are.
PERSON = {
    "one_by_one": [(62, 195), (229, 446), (505, 695), (747, 867), (924, 1197), (1237, 1356)],
    "squats": [(0, 64)],
}


def shown(intervals: list[tuple[int, int]], frames: int) -> NDArray[np.bool_]:
    mask = np.zeros(frames, np.bool_)
    for first, last in intervals:
        mask[first : last + 1] = True
    return mask


@pytest.mark.parametrize("clip", list(PERSON))
def test_people_are_found_while_they_are_there(clip: str, tmp_path: Path) -> None:
    if not CLIPS.is_dir():
        pytest.skip("needs the shared clips")
    process_video(CLIPS / f"{clip}.mp4", tmp_path, load_estimator(), VideoOptions(save=("json",)))
    frames = json.loads((tmp_path / f"{clip}.json").read_text())["frames"]
    found = np.array([bool(frame["people"]) for frame in frames])
    there, gone = shown(PERSON[clip], len(found)), ~shown(ANY_PART[clip], len(found))
    assert found[there].mean() >= 0.95
    assert not gone.any() or (~found[gone]).mean() >= 0.98
