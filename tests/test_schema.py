"""The JSON schema that is shipped, against what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_formats import EACH, IMAGES, VIDEO, make_poses, strict_json, write
from typer.testing import CliRunner

import hgpose
from hgpose.cli import app
from hgpose.types import Poses, SourceInfo

SCHEMA: dict[str, Any] = json.loads((Path(hgpose.__file__).parent / "schema.json").read_text())


def validator(part: str = "") -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#{part}", "$defs": SCHEMA["$defs"]} if part else SCHEMA)


def special() -> Poses:
    """People with all that a person can have: no id, numbers that are none, marks and raw keypoints."""
    poses = make_poses(2, ids=[-1, 3])
    poses.keypoints[0, :3] = np.nan
    poses.scores[1] = np.nan
    poses.boxes[0] = np.inf
    raw = np.full((2, 19, 3), np.nan, np.float32)
    marks = np.zeros((2, 19), np.bool_)
    marks[1, 4] = True
    return Poses(
        poses.keypoints,
        poses.scores,
        poses.boxes,
        poses.box_scores,
        poses.ids,
        poses.keypoint_set,
        None,
        raw,
        marks,
    )


def test_the_schema_is_one_and_is_printed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.exit_code == 0 and json.loads(printed.output) == SCHEMA


@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
def test_what_is_written_is_valid(tmp_path: Path, info: SourceInfo) -> None:
    each = [*EACH, make_poses(50), special()]
    validator().validate(strict_json(write(tmp_path, "json", each, info).read_text()))
    validator().validate(strict_json(write(tmp_path, "json", [], info).read_text()))
    header, *frames = write(tmp_path, "jsonl", each, info).read_text().splitlines()
    validator("/$defs/header").validate(strict_json(header))
    assert len(frames) == len(each)
    for frame in frames:
        validator("/$defs/frame").validate(strict_json(frame))


BROKEN: dict[str, Any] = {
    "another version": lambda d: d.update(schema="hgpose/2"),
    "no frames": lambda d: d.pop("frames"),
    "no keypoints": lambda d: d.pop("keypoints"),
    "a rate that is not exact": lambda d: d["source"].pop("fps_exact"),
    "a checksum that is none": lambda d: d["model"].update(sha256="12"),
    "no people": lambda d: d["frames"][0].pop("people"),
    "a frame before the first": lambda d: d["frames"][0].update(frame=-1),
    "a box of three": lambda d: d["frames"][1]["people"][0]["box"].pop(),
    "a keypoint of two": lambda d: d["frames"][1]["people"][0]["keypoints"][0].pop(),
    "a score above one": lambda d: d["frames"][1]["people"][0].update(score=1.5),
    "a number as text": lambda d: d["frames"][1]["people"][0].update(box=["1", 2, 3, 4]),
    "a name without a size": lambda d: d["frames"][0].update(name="a.jpg"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_not_valid(tmp_path: Path, what: str) -> None:
    document = strict_json(write(tmp_path, "json", EACH).read_text())
    BROKEN[what](document)
    assert not validator().is_valid(document)
