"""The pose task and the loop around it: it learns, stops, goes on, and fails without loss."""

from __future__ import annotations

import csv
import importlib.util
import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import write_png
from PIL import Image
from torch import Tensor, nn

from hgpose import heatmaps
from hgpose.errors import InputError, OptionsError, OutputError, TrainingError
from hgpose.keypoints import COCO17
from hgpose.options import TrainOptions
from hgpose.train import loop
from hgpose.train.augment import Augmentation
from hgpose.train.datasets import PoseSet
from hgpose.train.loop import Progress, Trainer
from hgpose.train.pose import PoseDataset, PoseTask, keypoint_loss
from hgpose.weights import Card, load_weights

People = Callable[[int], PoseSet]
#: Crops as at test time.
STILL = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
LEFT_WRIST, RIGHT_WRIST = COCO17.index("left_wrist"), COCO17.index("right_wrist")


def nothing(progress: Progress) -> None:
    pass


def pose_task(people: PoseSet, options: TrainOptions, cache: Path, empty: tuple[Path, ...] = ()) -> PoseTask:
    # Down to 2x2 cells: a batch of two leaves something to normalise by.
    architecture = {"stacks": 1, "width": 16, "depth": 3}
    return PoseTask(people, people, empty, COCO17, architecture, options, cache, {"data": ("drawn",)})


def options(out: Path, **changes: Any) -> TrainOptions:
    values: dict[str, Any] = {
        "size_px": 64,
        "batch": 2,
        "epochs": 10,
        "warmup_steps": 3,
        "device": "cpu",
        "half": False,
        "workers": 0,
        # At every look.
        "checkpoint_minutes": 1e-9,
    }
    return TrainOptions(out=out, **values | changes)


class Toy:
    """A task of milliseconds: tell whether an image is bright."""

    name = "toy"

    def __init__(self, samples: int = 8, score: float = 50.0) -> None:
        self.dataset: Any = _ToySamples(samples)
        self.score, self.poison, self.chosen_on = score, False, "these"

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = (model(batch["image"]).mean((1, 2, 3)) - batch["bright"]).square().mean()
        return loss * torch.nan if self.poison else loss

    def validate(self, model: nn.Module, device: torch.device, half: bool) -> dict[str, float]:
        assert not model.training
        return {"right": self.score}

    def card(self) -> Card:
        return Card("toy", self.name, {"kind": "toy"}, 64, (0, 0, 0), (1, 1, 1))

    def data(self) -> tuple[str, str]:
        return f"toys{len(self.dataset)}", self.chosen_on


class _ToySamples(torch.utils.data.Dataset[dict[str, Any]], Sized):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        rng = np.random.default_rng(key)
        bright = float(rng.random() < 0.5)
        return {"image": torch.full((1, 8, 8), bright), "bright": torch.tensor(bright)}


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOOK_STEPS", 5)


def log_rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(out: Path, name: str = "checkpoint.pt") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / name, weights_only=True)
    return state


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["step"] == b["step"]
    for part in ("model", "ema"):
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), f"{part} {key}"
    for ours, theirs in zip(a["optimizers"], b["optimizers"], strict=True):
        for row, state in ours["state"].items():
            for key, value in state.items():
                assert torch.equal(value, theirs["state"][row][key]), key


# Samples


def dataset(people: PoseSet, tmp_path: Path, aug: Augmentation, **changes: Any) -> PoseDataset:
    task = pose_task(people, options(tmp_path / "run"), tmp_path / "cache", **changes)
    task.dataset.aug = aug
    return task.dataset


def test_a_sample_depends_on_seed_epoch_and_index_alone(people: People, tmp_path: Path) -> None:
    samples = dataset(people(3), tmp_path, Augmentation())
    first = samples[(4, 1)]
    samples[(5, 2)]
    again, later = samples[(4, 1)], samples[(5, 1)]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], later["image"])
    samples.seed = 1
    assert not torch.equal(first["image"], samples[(4, 1)]["image"])


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_pixels_carry_joints_and_mirroring_swaps_sides(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: float
) -> None:
    monkeypatch.setattr(
        "hgpose.train.pose.random_fill", lambda size, rng: np.zeros((size, size, 3), np.uint8)
    )
    one = people(1)
    # The left wrist is the only thing to see, and the joints' weights tell them apart.
    image = np.zeros((120, 100, 3), np.uint8)
    one.points[0, LEFT_WRIST] = 40, 70
    cv2.circle(image, (40, 70), 4, (255, 255, 255), -1)
    write_png(one.files[0], image)
    one.weights[0] = np.linspace(0.1, 1, 17)
    one.confirmed[0, LEFT_WRIST] = True
    still = replace(STILL, scale=0.2, rotation_deg=40, any_rotation=0.5, shift=0.05, mirror=mirror)
    samples = dataset(one, tmp_path, still)
    wanted = RIGHT_WRIST if mirror else LEFT_WRIST
    seen = 0
    for epoch in range(20):
        item = samples[(epoch, 0)]
        assert item["weights"][wanted] == pytest.approx(one.weights[0, LEFT_WRIST])
        assert item["confirmed"].nonzero().flatten().tolist() == [wanted]
        weight = item["image"][0].double()
        if not item["present"][wanted] or weight.sum() < 1000:
            continue
        ys, xs = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        found = torch.stack([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
        assert torch.allclose((found - 1.5) / 4, item["points"][wanted].double(), atol=0.1)
        seen += 1
    assert seen > 10


def test_absent_and_unknown_joints(people: People, tmp_path: Path) -> None:
    one = people(1)
    one.visibility[0, LEFT_WRIST] = 0
    one.weights[0, LEFT_WRIST] = 0
    samples = dataset(one, tmp_path, replace(STILL, part=1))
    absent = 0
    for epoch in range(20):
        item = samples[(epoch, 0)]
        assert not item["present"][LEFT_WRIST] and item["weights"][LEFT_WRIST] == 0
        known = item["weights"] > 0
        assert known.sum() == 16
        inside = ((item["points"] > -0.5) & (item["points"] < 15.5)).all(-1)
        assert torch.equal(item["present"][known], inside[known])
        absent += int((known & ~item["present"]).sum())
    assert absent > 20


def test_crops_of_nobody(people: People, tmp_path: Path) -> None:
    empty = write_png(tmp_path / "empty.png", np.full((80, 90, 3), 33, np.uint8))
    samples = dataset(people(1), tmp_path, STILL, empty=(empty,))
    samples.empty_share = 1.0
    item = samples[(0, 0)]
    assert not item["present"].any() and (item["weights"] == 1).all()
    assert (item["image"] == 33).any()


# Learning


def test_overfits_two_people(people: People, tmp_path: Path) -> None:
    run = options(tmp_path / "run", epochs=150, learning_rate=0.01, checkpoint_minutes=5)
    task = pose_task(people(2), run, tmp_path / "cache")
    task.dataset.aug = STILL
    losses: list[float] = []
    trainer = Trainer(task, run)
    best = trainer.run(lambda progress: losses.append(progress.loss))
    assert trainer.scores == {"pck@0.2": 100.0}
    # From knowing nothing of 257 outcomes, 5.5, near to the targets' own entropy, 2.84.
    assert losses[0] > 4.5 and losses[-1] < 3.3
    # What was written says the same as what was trained.
    model, card = load_weights(best, "pose")
    assert (card.keypoint_set, card.input_px, card.data) == ("coco17", 64, ("drawn",))
    assert task.validate(model, torch.device("cpu"), False) == {"pck@0.2": 100.0}


# Stopping and going on


class Interrupted(Exception):
    pass


def test_resume_after_an_exception_equals_an_uninterrupted_run(
    people: People, tmp_path: Path, short_looks: None
) -> None:
    four = people(4)

    def train(out: str, report: Callable[[Progress], None], **changes: Any) -> None:
        run = options(tmp_path / out, **changes)
        Trainer(pose_task(four, run, tmp_path / "cache"), run).run(report)

    def stop(progress: Progress) -> None:
        # The checkpoint of step 5 is there, that of step 10 is not yet.
        if progress.step == 10:
            raise Interrupted

    train("whole", nothing)
    with pytest.raises(Interrupted):
        train("halves", stop, workers=1)
    assert checkpoint(tmp_path / "halves")["step"] == 5
    train("halves", nothing, workers=1, resume=True)
    assert_same_state(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves"))
    whole, halves = (
        [(row["step"], row["samples"], row["loss"], row["score"]) for row in log_rows(tmp_path / out)]
        for out in ("whole", "halves")
    )
    assert whole == halves
    assert (tmp_path / "whole/best.safetensors").read_bytes() == (
        tmp_path / "halves/best.safetensors"
    ).read_bytes()


def train_until_killed(people: PoseSet, run: TrainOptions, cache: Path) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    loop._LOOK_STEPS = 5

    def die(progress: Progress) -> None:
        if progress.step == 15:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer(pose_task(people, run, cache), run).run(die)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill")
def test_resume_after_a_kill_equals_an_uninterrupted_run(
    people: People, tmp_path: Path, short_looks: None
) -> None:
    four, cache = people(4), tmp_path / "cache"
    process = multiprocessing.get_context("spawn").Process(
        target=train_until_killed, args=(four, options(tmp_path / "killed"), cache)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint(tmp_path / "killed")["step"] == 10
    for run in (options(tmp_path / "killed", resume=True), options(tmp_path / "whole")):
        Trainer(pose_task(four, run, cache), run).run(nothing)
    assert_same_state(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "killed"))


@pytest.mark.parametrize("moment", ["in it", "after it"])
def test_killed_at_a_validation_is_made_up_for(
    moment: str, tmp_path: Path, short_looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waning(Toy):
        """Best in its second validation."""

        def __init__(self, killed: bool = False) -> None:
            super().__init__()
            self.scores, self.killed = {5: 50.0, 10: 60.0, 15: 40.0, 20: 30.0}, killed
            self.step = 0

        def loss(self, *args: Any) -> Tensor:
            self.step += 1
            return super().loss(*args)

        def validate(self, *args: Any) -> dict[str, float]:
            if self.killed and self.step == 10:
                raise Interrupted
            return {"toy": self.scores[self.step]}

    def die(*_: Any) -> None:
        if len([row for row in log_rows(killed.out) if row["score"]]) == 2:
            raise Interrupted

    whole, killed = (options(tmp_path / name, epochs=5) for name in ("whole", "killed"))
    Trainer(Waning(), whole).run(nothing)
    task = Waning(killed=moment == "in it")
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        if moment == "after it":
            patched.setattr(loop, "draw_curves", die)
        Trainer(task, killed).run(nothing)
    task.killed = False
    Trainer(task, replace(killed, resume=True)).run(nothing)
    rows = ([(r["step"], r["loss"], r["score"]) for r in log_rows(run.out)] for run in (whole, killed))
    assert next(rows) == next(rows)
    one, other = ((run.out / "best.safetensors").read_bytes() for run in (whole, killed))
    assert one == other


def test_killed_in_the_last_validation_still_ends_with_weights(tmp_path: Path, short_looks: None) -> None:
    class Killed(Toy):
        def validate(self, *args: Any) -> dict[str, float]:
            raise Interrupted

    run = options(tmp_path)
    with pytest.raises(Interrupted):
        Trainer(Killed(), run).run(nothing)
    assert Trainer(Toy(), replace(run, resume=True)).run(nothing).is_file()


def test_stable_checkpoint_prolongs_a_run(tmp_path: Path, short_looks: None) -> None:
    Trainer(Toy(), options(tmp_path / "short", epochs=10, decay=0.5)).run(nothing)
    # Eight samples in batches of two: half of 40 steps.
    assert checkpoint(tmp_path / "short", "stable.pt")["step"] == 20
    (tmp_path / "long").mkdir()
    (tmp_path / "short/stable.pt").rename(tmp_path / "long/checkpoint.pt")
    Trainer(Toy(), options(tmp_path / "long", epochs=20, decay=0.5, resume=True)).run(nothing)
    Trainer(Toy(), options(tmp_path / "whole", epochs=20, decay=0.5)).run(nothing)
    assert_same_state(checkpoint(tmp_path / "long"), checkpoint(tmp_path / "whole"))


def test_minutes_end_a_run(tmp_path: Path, short_looks: None) -> None:
    run = options(tmp_path, epochs=None, minutes=0.02)
    seen: list[float] = []
    Trainer(Toy(), run).run(lambda progress: seen.append(progress.done))
    assert seen[-1] == 1 and seen == sorted(seen)
    assert 1.2 <= checkpoint(tmp_path)["seconds"] < 5


def test_only_a_better_score_replaces_the_best_weights(tmp_path: Path, short_looks: None) -> None:
    task = Toy(score=70)
    Trainer(task, options(tmp_path)).run(nothing)
    best = (tmp_path / "best.safetensors").read_bytes()
    task.score = 60
    Trainer(task, options(tmp_path, epochs=20, resume=True)).run(nothing)
    assert (tmp_path / "best.safetensors").read_bytes() == best
    assert checkpoint(tmp_path)["best"] == 70
    task.score = 80
    Trainer(task, options(tmp_path, epochs=30, resume=True)).run(nothing)
    assert (tmp_path / "best.safetensors").read_bytes() != best


# Log and curves


def test_log_and_curves(tmp_path: Path, short_looks: None) -> None:
    Trainer(Toy(), options(tmp_path, epochs=5)).run(nothing)
    rows = log_rows(tmp_path)
    losses = [row for row in rows if row["loss"]]
    assert [int(row["step"]) for row in losses] == [5, 10, 15, 20]
    assert [int(row["samples"]) for row in losses] == [10, 20, 30, 40]
    assert all(float(row["loss"]) >= 0 and float(row["samples_per_s"]) > 0 for row in losses)
    scores = [row for row in rows if row["score"]]
    # At the first look after each epoch of four steps.
    assert [int(row["step"]) for row in scores] == [5, 10, 15, 20]
    assert all(float(row["score"]) == 50 and not row["loss"] for row in scores)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        colors = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    # The loss is drawn in blue, the score in orange.
    assert (31, 119, 180) in colors and (255, 127, 14) in colors


def test_resumed_log_drops_what_happens_again(tmp_path: Path, short_looks: None) -> None:
    Trainer(Toy(), options(tmp_path)).run(nothing)
    before = log_rows(tmp_path)
    assert before[-1]["step"] == "40" and before[-1]["score"]
    with (tmp_path / "log.csv").open("a") as file:
        file.write("45,90,9.0,0.5,10.0,\r\n4")
    Trainer(Toy(), options(tmp_path, resume=True))
    assert log_rows(tmp_path) == before


def test_new_run_begins_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("left by a run that never came to a checkpoint\n1,2\n")
    Trainer(Toy(), options(tmp_path))
    assert log_rows(tmp_path) == []
    assert (tmp_path / "log.csv").read_text().startswith("step,samples,seconds,loss,samples_per_s,score")


def test_matplotlib_is_asked_for_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"pip install 'hgpose\[train\]'"):
        Trainer(Toy(), options(tmp_path))


# Failing


def test_loss_that_is_no_number_keeps_the_checkpoint(tmp_path: Path, short_looks: None) -> None:
    task = Toy()

    def poison(progress: Progress) -> None:
        task.poison = progress.step == 10

    with pytest.raises(TrainingError, match=r"loss is nan at step 15; .*checkpoint\.pt holds .*--resume"):
        Trainer(task, options(tmp_path)).run(poison)
    state = checkpoint(tmp_path)
    assert state["step"] == 10
    assert all(value.isfinite().all() for value in state["model"].values())
    task.poison = False
    Trainer(task, options(tmp_path, resume=True)).run(nothing)
    assert checkpoint(tmp_path)["step"] == 40


def test_loss_that_is_never_a_number(tmp_path: Path, short_looks: None) -> None:
    task = Toy()
    task.poison = True
    with pytest.raises(TrainingError, match=r"loss is nan at step 5; lower --lr") as raised:
        Trainer(task, options(tmp_path)).run(nothing)
    assert "checkpoint" not in str(raised.value)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_never_saved(tmp_path: Path, bad: float) -> None:
    trainer = Trainer(Toy(), options(tmp_path))
    trainer.save(trainer.checkpoint)
    whole = trainer.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = bad
    trainer._average()
    with pytest.raises(TrainingError, match="weights are not finite"):
        trainer.save(trainer.checkpoint)
    assert trainer.checkpoint.read_bytes() == whole


def test_score_that_is_no_number(tmp_path: Path, short_looks: None) -> None:
    with pytest.raises(TrainingError, match=r"validation's right is nan"):
        Trainer(Toy(score=float("nan")), options(tmp_path)).run(nothing)
    # That of the first validation.
    assert checkpoint(tmp_path)["step"] == 5


def test_corrupt_validation_image_costs_nothing(people: People, tmp_path: Path, short_looks: None) -> None:
    two = people(2)
    run = options(tmp_path / "run")
    task = pose_task(two, run, tmp_path / "cache")
    two.files[1].write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"1\.png"):
        Trainer(task, run).run(nothing)
    assert checkpoint(run.out)["step"] == 5


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:200])])
def test_bad_training_image_is_named_before_training(
    people: People, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    two = people(2)
    damage(two.files[1])
    with pytest.raises(InputError, match=r"1\.png: cannot be read"):
        pose_task(two, options(tmp_path / "run"), tmp_path / "cache")


def test_validation_set_that_cannot_be_scored(people: People, tmp_path: Path) -> None:
    two = people(2)
    two.visibility[:, COCO17.index("left_shoulder")] = 0
    with pytest.raises(InputError, match=r"0\.png.*left_shoulder"):
        pose_task(two, options(tmp_path / "run"), tmp_path / "cache")


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples(tmp_path: Path, samples: int) -> None:
    with pytest.raises(TrainingError, match=f"at least 2 samples, there are {samples}"):
        Trainer(Toy(samples), options(tmp_path))


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    Trainer(Toy(3), options(tmp_path, batch=16, epochs=4)).run(nothing)
    assert checkpoint(tmp_path)["step"] == 4


def test_run_in_the_way(tmp_path: Path) -> None:
    Trainer(Toy(), options(tmp_path, epochs=1)).run(nothing)
    log = (tmp_path / "log.csv").read_bytes()
    with pytest.raises(TrainingError, match="add --resume, or choose another --out"):
        Trainer(Toy(), options(tmp_path, epochs=1))
    assert (tmp_path / "log.csv").read_bytes() == log


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="run"):
        Trainer(Toy(), options(tmp_path / "run"))


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: nothing to resume"):
        Trainer(Toy(), options(tmp_path, resume=True))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint"):
        Trainer(Toy(), options(tmp_path, resume=True))


def test_truncated_checkpoint(tmp_path: Path) -> None:
    Trainer(Toy(), options(tmp_path, epochs=1)).run(nothing)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint"):
        Trainer(Toy(), options(tmp_path, resume=True))


def test_checkpoint_of_another_run(people: People, tmp_path: Path) -> None:
    Trainer(Toy(), options(tmp_path, epochs=1)).run(nothing)
    for changes, what in (
        ({"seed": 1}, "--seed 0"),
        ({"batch": 4}, "--batch 2"),
        ({"size_px": 128}, "--size 64"),
    ):
        with pytest.raises(TrainingError, match=rf"was trained with {what}: resume with the same"):
            Trainer(Toy(), options(tmp_path, resume=True, **changes))
    other = Toy(samples=9)
    other.chosen_on = "those"
    with pytest.raises(TrainingError, match="annotations of checksum toys8, a --val of checksum these"):
        Trainer(other, options(tmp_path, resume=True))
    run = options(tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"was trained with the network .*toy"):
        Trainer(pose_task(people(2), run, tmp_path / "cache"), run)


def test_checksum_follows_labels_not_folders(people: People, tmp_path: Path) -> None:
    run = options(tmp_path)
    three = pose_task(people(3), run, tmp_path / "cache").data()
    assert three[0] == three[1]
    moved = replace(people(3), points=people(3).points + 1)
    assert pose_task(moved, run, tmp_path / "cache").data() != three
    away = [tmp_path / "elsewhere" / file.name for file in people(3).files]
    labels = (people(3).points,)
    assert loop.checksum(away, labels) == loop.checksum(people(3).files, labels)


@pytest.mark.parametrize("broken", [{"step": "x"}, {"optimizers": [5, 6]}, {"random": None}, {"same": None}])
def test_checkpoint_with_something_else_in_it(tmp_path: Path, broken: dict[str, Any]) -> None:
    Trainer(Toy(), options(tmp_path, epochs=1)).run(nothing)
    file = tmp_path / "checkpoint.pt"
    torch.save(torch.load(file) | broken, file)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint"):
        Trainer(Toy(), options(tmp_path, resume=True))


def test_time_since_the_last_validation_outlives_a_kill(tmp_path: Path, short_looks: None) -> None:
    run = options(tmp_path, epochs=None, minutes=0.02, validation_minutes=1e-9)
    Trainer(Toy(), run).run(nothing)
    trainer = Trainer(Toy(), replace(run, resume=True))
    assert 0 < trainer.validated[1] <= trainer.seconds


def test_best_weights_in_the_way(tmp_path: Path) -> None:
    best = tmp_path / "best.safetensors"
    best.write_bytes(b"dear")
    with pytest.raises(TrainingError, match=r"best\.safetensors is there"):
        Trainer(Toy(), options(tmp_path))
    assert best.read_bytes() == b"dear"


def test_log_that_is_none(tmp_path: Path, short_looks: None) -> None:
    Trainer(Toy(), options(tmp_path, epochs=2)).run(nothing)
    log = tmp_path / "log.csv"
    rows = log_rows(tmp_path)
    log.write_bytes(log.read_bytes() + b"abc,1,2,3,4,5\n1,1,1,4x,1,\n\xff\xfe\n")
    Trainer(Toy(), options(tmp_path, epochs=2, resume=True)).run(nothing)
    assert log_rows(tmp_path)[: len(rows)] == rows
    log.unlink()
    log.mkdir()
    with pytest.raises(OutputError, match=r"log\.csv"):
        Trainer(Toy(), options(tmp_path, epochs=2, resume=True))


def test_samples_of_a_set_smaller_than_a_batch_are_counted(tmp_path: Path, short_looks: None) -> None:
    Trainer(Toy(3), options(tmp_path, batch=16, epochs=4)).run(nothing)
    assert log_rows(tmp_path)[-1]["samples"] == "12"


class Dying(_ToySamples):
    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if key[0] == 3 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def train_with_a_loader_that_dies(out: Path) -> None:
    toy = Toy()
    toy.dataset = Dying(8)
    with pytest.raises(TrainingError, match="a process that prepares crops died at step") as told:
        Trainer(toy, options(out, workers=1)).run(nothing)
    # PyTorch may tell of the death once more, anywhere.
    with suppress(RuntimeError):
        time.sleep(0.5)
    (out / "told").write_text(str(told.value))
    os._exit(0)


def test_loader_that_dies(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=train_with_a_loader_that_dies, args=(tmp_path,)
    )
    process.start()
    process.join(120)
    assert "--workers 0" in (tmp_path / "told").read_text()


def test_file_size_limit(tmp_path: Path) -> None:
    Trainer(Toy(), options(tmp_path, epochs=1)).run(nothing)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    trainer = Trainer(Toy(), options(tmp_path, epochs=2, resume=True))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.pt"):
            trainer.save(trainer.checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("changes", [{"seed": -1}, {"seed": 10**30}, {"epochs": math.inf}])
def test_options_out_of_range(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        options(tmp_path, **changes)


def test_weights_to_begin_with(people: People, tmp_path: Path) -> None:
    two = people(2)
    first = options(tmp_path / "first", epochs=1)
    best = Trainer(pose_task(two, first, tmp_path / "cache"), first).run(nothing)
    second = options(tmp_path / "second", init=str(best))
    started = Trainer(pose_task(two, second, tmp_path / "cache"), second)
    trained, _ = load_weights(best, "pose")
    assert torch.equal(
        started.model.state_dict()["stem.conv.weight"], trained.state_dict()["stem.conv.weight"]
    )
    wider = PoseTask(
        two, two, (), COCO17, {"stacks": 1, "width": 32, "depth": 3}, second, tmp_path / "cache", {}
    )
    with pytest.raises(TrainingError, match=r"best\.safetensors: its network is .*'width': 16.*'width': 32"):
        Trainer(wider, replace(second, out=tmp_path / "third"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(Toy(), options(tmp_path))
    trainer.save(trainer.checkpoint)
    whole = trainer.checkpoint.read_bytes()
    opened = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return opened(Path("/dev/full") if path.suffix == ".part" else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"checkpoint\.pt: No space left"):
        trainer.save(trainer.checkpoint)
    assert trainer.checkpoint.read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def sure_maps(points: list[list[float]], certainty: float = 0.999) -> Tensor:
    """Raw maps ``(1, 3, 16, 16)`` of a network that is sure where two sides and a middle are."""
    seen = heatmaps.encode(torch.tensor([points]), torch.ones(1, 3, dtype=torch.bool), (16, 16), 1.0)
    return (seen * certainty + (1 - certainty) / 257).log() + math.log(257 / (1 - certainty))


def loss_of(
    maps: Tensor,
    points: list[list[float]],
    weights: tuple[float, ...] = (1, 1, 1),
    confirmed: tuple[bool, ...] = (False, False, False),
) -> float:
    targets = heatmaps.encode(torch.tensor([points]), torch.ones(1, 3, dtype=torch.bool), (16, 16), 1.0)
    return float(keypoint_loss(maps, targets, torch.tensor([weights]), torch.tensor([confirmed]), [1, 0, 2]))


LEFT, RIGHT, MIDDLE = [3.0, 4.0], [12.0, 5.0], [8.0, 12.0]


def test_keypoint_loss_doubts_labels_that_swap_sides() -> None:
    maps = sure_maps([LEFT, RIGHT, MIDDLE])
    right = loss_of(maps, [LEFT, RIGHT, MIDDLE])
    swapped = loss_of(maps, [RIGHT, LEFT, MIDDLE])
    # Both labels of the pair at the price of one swap in 33, two joints of three.
    assert swapped - right == pytest.approx(math.log(0.97 / 0.03) / 3, abs=0.01)
    # With one side unlabelled there is nothing to swap: the label lies anywhere.
    lone = loss_of(maps, [RIGHT, LEFT, MIDDLE], (1, 0, 1)) - loss_of(maps, [LEFT, RIGHT, MIDDLE], (1, 0, 1))
    assert lone > 2 * (swapped - right)


def test_keypoint_loss_does_not_doubt_confirmed_sides() -> None:
    maps = sure_maps([LEFT, RIGHT, MIDDLE])
    costs = [
        loss_of(maps, [RIGHT, LEFT, MIDDLE], confirmed=confirmed)
        for confirmed in (
            (False, False, True),
            (True, False, False),
            (False, True, False),
            (True, True, False),
        )
    ]
    # A confirmed label of the pair speaks for both; what is said of others is no matter.
    assert costs[0] == loss_of(maps, [RIGHT, LEFT, MIDDLE]) and costs[1] == costs[2] == costs[3]
    right = loss_of(maps, [LEFT, RIGHT, MIDDLE], confirmed=(True, True, True))
    assert right == pytest.approx(loss_of(maps, [LEFT, RIGHT, MIDDLE]), abs=0.03)
    assert costs[1] - right > 2 * (costs[0] - right)


def test_keypoint_loss_bounds_what_a_stray_label_costs() -> None:
    maps = sure_maps([LEFT, RIGHT, MIDDLE], certainty=1 - 1e-9)
    assert loss_of(maps, [LEFT, RIGHT, [1.0, 1.0]], (0, 0, 1)) == pytest.approx(
        math.log(257 / 0.03), abs=0.01
    )


def test_keypoint_loss_is_the_cross_entropy_while_nothing_is_known() -> None:
    maps = torch.zeros(1, 3, 16, 16, requires_grad=True)
    targets = heatmaps.encode(
        torch.tensor([[LEFT, RIGHT, MIDDLE]]), torch.ones(1, 3, dtype=torch.bool), (16, 16), 1.0
    )
    doubted = torch.zeros(1, 3, dtype=torch.bool)
    loss = keypoint_loss(maps, targets, torch.ones(1, 3), doubted, [1, 0, 2])
    assert loss.item() == pytest.approx(math.log(257), abs=1e-3)
    # What is not known does not count, however wrong.
    weights = torch.tensor([[1.0, 1.0, 0.0]])
    torch.autograd.backward(keypoint_loss(maps, targets, weights, doubted, [1, 0, 2]))
    assert maps.grad is not None and maps.grad[0, 0].abs().sum() > 0 and not maps.grad[0, 2].any()
