"""The benchmark of following scores what it should; its command runs on the demo clip."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from walkers import Walker, body, box_of, frame, poses_of

from hgpose.cli import app
from hgpose.demo import CLIP, TRUTH
from hgpose.demo.scenes import SCENES, rendered
from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17
from hgpose.train.tracking import (
    MadeUpDetector,
    TrueFrame,
    _events,
    id_scores,
    lives,
    load_truth,
    motion_scores,
)
from hgpose.types import Poses

FPS = 30.0


def true_frame(people: dict[int, np.ndarray[Any, Any]], shot: int = 0, seen: float = 1.0) -> TrueFrame:
    """These people, of whom a share of the keypoints is seen."""
    visible = np.where(np.arange(len(BODY19)) < seen * len(BODY19), 2, 1)
    joints = [np.column_stack([p, visible]) for p in people.values()]
    boxes = np.array([box_of(p) for p in people.values()], np.float32).reshape(-1, 4)
    return TrueFrame(
        np.array(list(people), np.int64),
        np.array(joints, np.float64).reshape(-1, len(BODY19), 3),
        boxes,
        boxes,
        shot,
    )


def walking(count: int) -> list[TrueFrame]:
    walkers = Walker(100, 4), Walker(600, -3, ground=250)
    frames = []
    for t in range(count):
        frames.append(true_frame({i: p for i, w in enumerate(walkers) if (p := w.at(t)) is not None}))
    return frames


def with_ids(truth: TrueFrame, ids: list[int], late: np.ndarray[Any, Any] | None = None) -> Poses:
    points = truth.joints[..., :2] if late is None else late
    found = poses_of([p.astype(np.float32) for p in points])
    found.ids[:] = ids
    return found


def test_truth_of_the_demo_clip() -> None:
    truth = load_truth(TRUTH, BODY19)
    assert len(truth) == 125
    assert all(f.ids.tolist() == [1, 2] and f.shown.all() and f.shot == 0 for f in truth)
    # Boxes by keypoints hold the outlines, roughly.
    assert all((np.abs(f.boxes - f.outlines) < 40).all() for f in truth)


def test_keypoints_that_the_truth_lacks_are_outside(tmp_path: Path) -> None:
    document = json.loads(TRUTH.read_text())
    document["categories"][0]["keypoints"] = list(COCO17.names)
    for annotation in document["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][: 3 * len(COCO17)]
    (tmp_path / "x.json").write_text(json.dumps(document))
    for whole, lacking in zip(
        load_truth(TRUTH, BODY19), load_truth(tmp_path / "x.json", BODY19), strict=True
    ):
        assert (lacking.joints[:, :17] == whole.joints[:, :17]).all()
        assert (lacking.joints[:, 17:] == 0).all()


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', TRUTH.read_text().replace("track_id", "who")])
def test_truth_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        load_truth(tmp_path / "x.json", BODY19)
    with pytest.raises(InputError, match="no such file"):
        load_truth(tmp_path / "y.json", BODY19)


def test_truth_may_have_frames_of_nobody_but_not_only_these(tmp_path: Path) -> None:
    document = json.loads(TRUTH.read_text())
    first = min(image["id"] for image in document["images"])
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != first]
    (tmp_path / "x.json").write_text(json.dumps(document))
    assert [len(f.ids) for f in load_truth(tmp_path / "x.json", BODY19)] == [0] + [2] * 124
    (tmp_path / "x.json").write_text(json.dumps(document | {"annotations": []}))
    with pytest.raises(InputError, match=r"x\.json: nobody"):
        load_truth(tmp_path / "x.json", BODY19)


@pytest.mark.parametrize(("hidden", "second"), [(29, 0), (31, 1)])
def test_a_person_lives_on_after_a_short_absence(hidden: int, second: int) -> None:
    stand = body(300, 320, 200)
    truth = [true_frame({7: stand})] * 10
    # Hardly any of them to be seen is as good as out of sight.
    truth += [true_frame({7: stand}, seen=0.1)] * hidden + [true_frame({7: stand})] * 10
    assert lives(truth, FPS, 1.0)[-1].tolist() == [second]
    assert not truth[15].shown.any() and truth[0].shown.all()


def test_nobody_lives_through_a_cut() -> None:
    stand = body(300, 320, 200)
    truth = [true_frame({7: stand, 9: stand + 200}, shot=t // 5) for t in range(15)]
    assert [ids.tolist() for ids in lives(truth, FPS, 1.0)] == [[0, 1]] * 5 + [[2, 3]] * 5 + [[4, 5]] * 5


def test_the_detector_is_as_bad_as_it_says() -> None:
    truth = load_truth(TRUTH, BODY19) * 4
    frames = [frame(t) for t in range(len(truth))]
    detector = MadeUpDetector(truth, seed=3)
    found = detector(frames)
    people = sum(len(f.ids) for f in truth)
    good = sum(
        int((np.abs(d.boxes[:, None] - f.outlines[None]).max(-1) < 60).any(0).sum())
        for d, f in zip(found, truth, strict=True)
    )
    # Three standard deviations of 1000 draws.
    assert good / people == pytest.approx(0.8, abs=0.04)
    assert (sum(len(d) for d in found) - good) / people == pytest.approx(0.05, abs=0.03)
    # Whichever frames are asked for, in whichever order.
    again = detector(frames[::-1])[::-1]
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(found, again, strict=True))
    assert any(
        len(a) != len(b) or not np.array_equal(a.boxes, b.boxes)
        for a, b in zip(found, MadeUpDetector(truth, seed=4)(frames), strict=True)
    )


def test_ids_are_scored() -> None:
    truth = walking(40)
    ids = lives(truth, FPS, 1.0)
    right = [with_ids(f, [1, 2]) for f in truth]
    swapped = [with_ids(f, [1, 2] if t < 20 else [2, 1]) for t, f in enumerate(truth)]
    missing = [with_ids(f, [1, 2])[[0]] for f in truth]
    scored = id_scores(
        {
            name: [_events(truth, ids, found)]
            for name, found in {"right": right, "swapped": swapped, "missing": missing}.items()
        }
    )
    assert scored["right"] == {
        "idf1": 1, "mota": 1, "switches": 0, "misses": 0, "false_positives": 0, "objects": 80,
    }  # fmt: skip
    assert scored["swapped"]["switches"] == 2 and scored["swapped"]["idf1"] == pytest.approx(0.5)
    assert scored["missing"]["misses"] == 40 and scored["missing"]["mota"] == pytest.approx(0.5)
    assert scored["all"]["objects"] == 240 and scored["all"]["misses"] == 40


def test_who_hardly_shows_is_not_held_against_anyone() -> None:
    stand = body(300, 320, 200)
    truth = [true_frame({7: stand}, seen=0.1)] * 10
    found = [with_ids(f, [1]) for f in truth[:5]] + [with_ids(f, [1])[[]] for f in truth[5:]]
    events = _events(truth, lives(truth, FPS, 1.0), found)
    scored = id_scores({"hidden": [events], "seen": [_events(*_seen())]})["hidden"]
    assert scored["objects"] == scored["misses"] == scored["false_positives"] == 0


def _seen() -> Any:
    truth = walking(3)
    return truth, lives(truth, FPS, 1.0), [with_ids(f, [1, 2]) for f in truth]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_lag_is_the_frames_that_keypoints_come_late(late: int) -> None:
    truth = walking(60)
    exact = [with_ids(f, [1, 2]) for f in truth]
    delayed = [with_ids(f, [1, 2], truth[max(t - late, 0)].joints[..., :2]) for t, f in enumerate(truth)]
    scored = motion_scores(truth, lives(truth, FPS, 1.0), {"none": exact, "live": delayed}, BODY19)
    assert scored["lag_none"] == 0
    # A walker's steps are no straight line; the first frames cannot be late.
    assert scored["lag_live"] == pytest.approx(late, abs=0.15)


def test_jitter_is_the_errors_acceleration() -> None:
    truth = walking(60)
    rng = np.random.default_rng(0)
    noisy = [
        with_ids(f, [1, 2], f.joints[..., :2] + rng.normal(0, s, (2, 19, 2))) for f in truth for s in [1.0]
    ]
    exact = [with_ids(f, [1, 2]) for f in truth]
    scored = motion_scores(truth, lives(truth, FPS, 1.0), {"none": noisy, "full": exact}, BODY19)
    # Second differences have six times the variance: mean length sqrt(6 pi / 2).
    assert scored["jitter_none"] == pytest.approx(np.sqrt(3 * np.pi), rel=0.05)
    assert scored["jitter_full"] == pytest.approx(0, abs=1e-4)


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", "track", *arguments])
    return result.exit_code, result.output


def test_command_on_the_demo_clip() -> None:
    code, output = command("--exact", "--json", str(TRUTH))
    assert code == 0
    scored = json.loads(output)[str(TRUTH)]
    assert scored["idf1"] >= 0.95 and scored["switches"] == 0
    assert scored["detections"] <= 0.2
    assert abs(scored["lag_full"]) < 0.1 and scored["lag_live"] <= 1
    for smooth in ("live", "full"):
        assert scored[f"pck_{smooth}"] >= scored["pck_none"] - 0.5
    assert scored["jitter_full"] < 0.4 * scored["jitter_none"]
    assert scored["jitter_live"] < 0.6 * scored["jitter_none"]


def test_json_is_alone_on_stdout_when_clips_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(*_: object) -> dict[str, tuple[Path, Path]]:
        print("Warp 1.0 initialized")
        return {"demo": (CLIP, TRUTH)}

    monkeypatch.setattr("hgpose.demo.scenes.rendered", talkative)
    result = CliRunner().invoke(app, ["eval", "track", "--exact", "--json"])
    assert list(json.loads(result.stdout)) == ["demo", "all"]
    assert "Warp" in result.stderr


def test_command_without_truth() -> None:
    code, output = command("--json", "--end", "0.4", str(CLIP))
    assert code == 0
    scored = json.loads(output)[str(CLIP)]
    assert scored["frames"] == 10
    assert scored["detections_per_frame"] < 1
    assert set(scored) >= {"people_lost", "frames_per_s", "jitter_falls_by_full_percent"}


def test_a_still_has_no_jitter_to_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgpose.train.tracking._acceleration", lambda points: 0.0)
    still = tmp_path / "still [b]/x[/b].mp4"
    still.parent.mkdir(parents=True, exist_ok=True)
    still.write_bytes(CLIP.read_bytes())
    code, output = command(str(still), "--end", "0.2", "--markdown")
    assert code == 0, output
    # Names stand as they are, in a line of their own.
    assert f"| {still} |" in output.splitlines()[1]
    assert re.search(r"jitter_falls_by_full_percent +\| +\|", output)


def test_scores_need_a_package_and_say_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("rendered before")

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "motmetrics" else find(name))
    monkeypatch.setattr("hgpose.demo.scenes.rendered", too_late)
    code, output = command("--exact")
    assert code == 1 and "motmetrics: pip install 'hgpose[train]'" in output.replace("\n", " ")


def test_a_truth_finds_its_video(tmp_path: Path) -> None:
    truth = tmp_path / "a.json"
    truth.write_text(TRUTH.read_text())
    code, output = command("--exact", str(truth))
    assert code == 1 and "there: none" in output
    (tmp_path / "a.mov").write_bytes(CLIP.read_bytes())
    code, output = command("--exact", str(truth), "--markdown")
    assert code == 0 and f"| {truth} |" in output
    (tmp_path / "a.mkv").write_bytes(CLIP.read_bytes())
    code, output = command("--exact", str(truth))
    assert code == 1 and "there: a.mkv, a.mov" in output.replace("\n", " ")


def test_command_used_wrongly(tmp_path: Path) -> None:
    code, output = command("--exact", str(CLIP))
    # The path may be broken across lines.
    assert code == 2 and "needs truth" in output
    assert command(str(CLIP), "--detect-every", "0")[0] == 2
    for arguments in (["--exact", str(tmp_path / "no.json")], [str(tmp_path / "no.mp4")]):
        assert command(*arguments)[0] == 1, arguments


def test_truth_of_another_clip(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP.read_bytes())
    truth = json.loads(TRUTH.read_text())
    truth["images"] = truth["images"][:100]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] < 100]
    (tmp_path / "a.json").write_text(json.dumps(truth))
    code, output = command("--exact", str(tmp_path / "a.json"))
    assert code == 1 and "125 frames, but 100 in its truth" in output.replace("\n", " ")


def test_rendering_needs_the_body_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(InputError, match=r"anny.*\[demo\]"):
        rendered(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_scenes_hold_one_to_four_people_and_cuts() -> None:
    assert {len(scene.actors) for scene in SCENES.values()} == {1, 2, 3, 4}
    assert any(len(scene.shots) > 2 for scene in SCENES.values())
