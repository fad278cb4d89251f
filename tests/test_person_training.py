"""The person task: targets follow the pixels, losses want the right thing, it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_png
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from hgpose.cli import app
from hgpose.errors import InputError
from hgpose.geometry import CropTransform
from hgpose.models.finder import PersonFinder
from hgpose.options import TrainOptions
from hgpose.train.augment import Augmentation
from hgpose.train.datasets import BoxSet
from hgpose.train.loop import Trainer
from hgpose.train.person import PersonTask, aligned_loss, box_targets, choose_learners, in_view
from hgpose.weights import read_card

Boxes = Callable[[list[list[tuple[int, int, int, int]]]], BoxSet]
STILL = Augmentation(mirror=0.5, color=0, gray=0, blur=0, cut_out=0)
QUARTERS = replace(STILL, mosaic=1)


def task(boxes: BoxSet, tmp_path: Path, **changes: Any) -> tuple[PersonTask, TrainOptions]:
    values: dict[str, Any] = {"size_px": 64, "batch": 2, "device": "cpu", "half": False, "workers": 0}
    run = TrainOptions(out=tmp_path / "run", **({"epochs": 1} | values | changes))
    made = PersonTask(
        boxes, boxes, {"stacks": 2, "width": 16}, run, tmp_path / "cache", {"data": ("drawn",)}, 56, 0.5
    )
    return made, run


def targets(*boxes: tuple[float, ...], size_px: int = 64, sure: float = 1) -> dict[str, NDArray[np.float32]]:
    return box_targets(np.array(boxes, float).reshape(-1, 4), np.full(len(boxes), sure, np.float32), size_px)


def test_target_of_one_person() -> None:
    made = targets((10, 6, 38, 58), sure=0.5)
    assert made["people"][0].tolist() == [10, 6, 38, 58, 0.5] and not made["people"][1:].any()
    assert (made["known"] == 1).all()
    assert all(value.dtype == np.float32 for value in made.values())


def test_target_of_nobody() -> None:
    made = targets()
    assert not made["people"].any() and (made["known"] == 1).all()


@pytest.mark.parametrize(
    ("box", "sure"),
    [
        ((20, 20, 28, 29), 1),  # lower than 10 px
        ((-60, 4, 20, 60), 1),  # a quarter is left in the view
        ((8, 8, 40, 60), 0),
    ],
)
def test_people_that_neither_count_nor_err(box: tuple[int, ...], sure: float) -> None:
    made = targets(box, sure=sure)
    assert not made["people"].any()
    x1, y1, x2, y2 = np.clip(box, 0, 63)
    assert made["known"][(y1 + y2) // 16, (x1 + x2) // 16] == 0
    assert made["known"].sum() > 0


def test_person_outside_the_view_leaves_no_trace() -> None:
    for key, value in targets((100, 100, 130, 160)).items():
        assert np.array_equal(value, targets()[key])


def test_box_leaving_the_view_is_learnt_as_far_as_seen() -> None:
    assert targets((30, 10, 80, 50))["people"][0].tolist() == [30, 10, 63.5, 50, 1]


def test_of_too_many_people_the_smallest_are_unknown() -> None:
    rows = [(8.0 * (i % 8), 8.0 * (i // 8), 8.0 * (i % 8) + 8, 8.0 * (i // 8) + 12) for i in range(83)]
    rows[5] = (40.0, 0.0, 47.0, 11.0)
    made = targets(*rows, size_px=128)
    assert made["people"].any(1).sum() == 80 and [40, 0, 47, 11, 1] not in made["people"].tolist()
    # A cell, and of each of the last two, as large as the others, two.
    assert made["known"][0, 5] == 0 and (made["known"][10:12, 1:3] == 0).all()
    assert (made["known"] == 0).sum() == 5


@pytest.fixture
def black_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a view shows nothing of an image it is black."""
    monkeypatch.setattr(
        "hgpose.train.person.random_fill", lambda size, rng: np.zeros((size, size, 3), np.uint8)
    )


@pytest.mark.parametrize("epoch", range(12))
def test_boxes_follow_their_pixels(boxes: Boxes, tmp_path: Path, black_canvas: None, epoch: int) -> None:
    """The white rectangle of a view spans the box that is told."""
    made, _ = task(boxes([[(38, 22, 62, 60)]]), tmp_path)
    made.dataset.aug = STILL
    item = made.dataset[(epoch, 0)]
    white = item["image"][0].numpy() > 127
    told = item["people"].numpy()
    if not told.any():
        assert white.mean() < 0.2
        return
    ys, xs = np.nonzero(white)
    span = [xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5]
    # A turned rectangle's corners are thinner than a pixel.
    assert np.allclose(told[0, :4], span, atol=2) and not told[1:].any()


@pytest.mark.parametrize("epoch", range(12))
def test_the_box_of_somebody_round_is_not_widened_where_the_view_is_turned(
    boxes: Boxes, tmp_path: Path, black_canvas: None, epoch: int
) -> None:
    seen = boxes([[(44, 10, 56, 70)]])
    picture = np.zeros((80, 100, 3), np.uint8)
    ys, xs = np.mgrid[:80, :100]
    picture[((xs - 49.5) / 6) ** 2 + ((ys - 39.5) / 30) ** 2 <= 1] = 255
    write_png(seen.files[0], picture)
    made, _ = task(seen, tmp_path, size_px=256)
    made.dataset.aug = STILL
    item = made.dataset[(epoch, 0)]
    ys, xs = np.nonzero(item["image"][0].numpy() > 127)
    x1, y1, x2, y2, sure = item["people"][0].tolist()
    if not sure:
        return
    # A pixel of the picture spans three and more of the view.
    assert (x1, y1, x2, y2) == pytest.approx((xs.min(), ys.min(), xs.max(), ys.max()), abs=4)


@pytest.mark.parametrize("epoch", range(12))
def test_boxes_of_a_mosaic_follow_their_pixels(
    boxes: Boxes, tmp_path: Path, black_canvas: None, epoch: int
) -> None:
    """Every box of a view of four spans a white rectangle; a rectangle without a box is unknown."""
    made, _ = task(boxes([[(38, 22, 62, 60)], [(5, 30, 40, 70)]]), tmp_path, size_px=256)
    made.dataset.aug = QUARTERS
    item = made.dataset[(epoch, 0)]
    white = item["image"][0].numpy() > 127
    told = item["people"].numpy()
    told = told[told.any(1)]
    assert len(told)
    covered = np.kron(item["known"].numpy() == 0, np.ones((8, 8), bool))
    for x1, y1, x2, y2 in (told[:, :4] + 0.5).round().astype(int):
        # Not all of it: the box of a turned rectangle has empty corners.
        assert white[y1:y2, x1:x2].mean() > 0.6
        covered[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = True
    # Unknown are cells, not pixels.
    assert (white & ~covered).mean() < 0.01


def test_view_cuts_people() -> None:
    boxes = np.array([[-40.0, 4, 40, 20], [-60, 4, 20, 60], [30, 2, 50, 30], [90, 4, 99, 60]])
    cut, sure = in_view(boxes, np.array([0.5, 1, 0, 1], np.float32), (60, 25))
    assert cut.tolist() == [[-0.5, 4, 40, 20], [-0.5, 4, 20, 24.5], [30, 2, 50, 24.5]]
    assert sure.tolist() == [0.5, 0, 0]


def test_samples_depend_on_seed_epoch_and_index_alone(boxes: Boxes, tmp_path: Path) -> None:
    made, _ = task(boxes([[(10, 10, 50, 70)], []]), tmp_path)
    first, again, later = (made.dataset[key] for key in ((3, 0), (3, 0), (4, 0)))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], later["image"])


def middles(size: int) -> Tensor:
    """Of the cells of a map of so many a side, input px."""
    along = torch.arange(size) * 8 + 3.5
    return torch.cartesian_prod(along, along).flip(1)


def test_learners_by_hand() -> None:
    """Three cells see the person, two of them well; the best one is to score its overlap."""
    person = torch.tensor([[[8.0, 8.0, 24.0, 40.0, 1.0], [0, 0, 0, 0, 0]]])
    boxes = torch.zeros(1, 64, 4)
    exact, half, outside = 2 * 8 + 1, 3 * 8 + 2, 7 * 8 + 7
    boxes[0, [exact, outside]] = person[0, 0, :4]
    boxes[0, half] = torch.tensor([8.0, 8, 16, 40])
    scores = torch.full((1, 64), 0.25)
    goal, owner, learns = choose_learners(scores, boxes, middles(8), person)
    assert goal[0, exact] == 1 and goal[0, half].item() == pytest.approx(0.5**4)
    # As much less as it is unsure that he is there.
    unsure, _, _ = choose_learners(scores, boxes, middles(8), person * torch.tensor([1, 1, 1, 1, 0.5]))
    assert torch.equal(unsure, goal / 2)
    # However right its box is, a cell that does not lie on the person is not his.
    assert goal[0, outside] == 0 and not learns[0, outside]
    # All cells on him are fewer than ten: two columns, four rows.
    assert learns.sum() == 8 and (owner[learns] == 0).all()


def test_the_surer_of_two_equally_right_cells_is_to_score_most() -> None:
    person = torch.tensor([[[8.0, 8.0, 24.0, 40.0, 1.0]]])
    boxes = person[..., :4].expand(1, 64, 4)
    scores = torch.full((1, 64), 0.16)
    scores[0, 17] = 0.64
    goal, _, _ = choose_learners(scores, boxes, middles(8), person)
    assert goal[0, 17] == 1 and goal[0, 18].item() == pytest.approx(0.5)


def test_at_most_ten_cells_learn_a_person_and_each_one_person() -> None:
    people = torch.tensor([[[0.0, 0.0, 64.0, 64.0, 1.0], [16.0, 16.0, 48.0, 48.0, 1.0]]])
    boxes = people[:, :1, :4].expand(1, 64, 4).clone()
    boxes[0, 27] = people[0, 1, :4]
    goal, owner, learns = choose_learners(torch.full((1, 64), 0.5), boxes, middles(8), people)
    assert owner[0, 27] == 1 and goal[0, 27].item() == pytest.approx(1)
    assert 11 <= learns.sum() <= 20 and (learns & (owner == 0)).sum() <= 10


def test_a_tiny_person_is_learnt_by_the_cell_he_lies_in() -> None:
    person = torch.tensor([[[16.5, 16.5, 18.5, 27.0, 1.0]]])
    _, _, learns = choose_learners(torch.full((1, 64), 0.01), torch.zeros(1, 64, 4), middles(8), person)
    assert learns[0, 2 * 8 + 2]


def test_loss_wants_the_right_box_scored() -> None:
    wanted = torch.tensor([8.0, 8.0, 24.0, 40.0])
    made = {key: torch.from_numpy(value)[None] for key, value in targets(wanted.tolist()).items()}
    there = middles(8)
    sides = torch.cat([there - wanted[:2], wanted[2:] - there], dim=1).clamp_min(1)
    exact = sides.T.view(1, 4, 8, 8)
    on = (sides.min(1).values > 1).view(1, 8, 8)
    raw = on.float() * 12 - 6

    def loss(raw: Tensor, distances: Tensor, known: Tensor = made["known"]) -> float:
        return aligned_loss(raw, distances, made["people"], known).item()

    right, blind, wrong = loss(raw, exact), loss(torch.full_like(raw, -6), exact), loss(-raw, exact)
    assert right < 0.1 < blind < wrong
    # The box's share: all cells are half as wide as the person, wherever they are sure.
    assert loss(raw, exact * torch.tensor([1, 1, 0.5, 1]).view(1, 4, 1, 1)) > right + 0.2
    # Where nothing is known nothing is wrong, but who is there is learnt.
    nobody = made["people"] * 0
    assert aligned_loss(raw, exact, nobody, made["known"]) > 1
    assert aligned_loss(raw, exact, nobody, made["known"] * 0) == 0
    assert loss(torch.full_like(raw, -6), exact, made["known"] * 0) > 1


def test_loss_agrees_with_decoding() -> None:
    """The boxes that :meth:`PersonFinder.decode` makes are those the loss has learnt."""
    wanted = (10.0, 6.0, 38.0, 58.0)
    made = {key: torch.from_numpy(value)[None] for key, value in targets(wanted).items()}
    raw = torch.full((1, 8, 8), -4.0).requires_grad_()
    sides = torch.full((1, 4, 8, 8), 3.0).requires_grad_()
    optimizer = torch.optim.Adam([raw, sides], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        aligned_loss(raw, sides.exp(), made["people"], made["known"]).backward()
        optimizer.step()
    found, scores = PersonFinder.decode(raw.detach(), sides.detach().exp(), max_people=2)
    assert found[0, 0].tolist() == pytest.approx(wanted, abs=0.5) and scores[0, 0] > 0.9


def test_overfits_two_images(boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = boxes([[(20, 8, 50, 72)], [(55, 20, 85, 60)]])
    made, run = task(two, tmp_path, epochs=200, learning_rate=0.01, warmup_steps=10)
    made.dataset.aug = STILL
    as_at_test_time = CropTransform.letterbox((100, 80), 56, 64)
    assert as_at_test_time.size_wh == (64, 64)
    monkeypatch.setattr(made.dataset, "_random_view", lambda *_: as_at_test_time)
    losses: list[float] = []
    trainer = Trainer(made, run)
    assert trainer.run(lambda progress: losses.append(progress.loss)).is_file()
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.scores["AP50"] > 99


@pytest.mark.parametrize("box", [None, (10, 10, 30, 14)], ids=["none", "lower than a tenth of the image"])
def test_validation_set_without_boxes_that_count(
    boxes: Boxes, tmp_path: Path, box: tuple[int, int, int, int] | None
) -> None:
    learnt, chosen = boxes([[(10, 10, 50, 70)], []]), boxes([[box] if box else [], []])
    run = TrainOptions(out=tmp_path / "run", size_px=64, epochs=1)
    with pytest.raises(InputError, match=r"0\.png.* has no boxes of people as high as"):
        PersonTask(learnt, chosen, {"stacks": 1, "width": 16}, run, tmp_path / "cache", {}, 64, 0.5)


@pytest.mark.parametrize("which", ["none", "crowds", "surely nobody"])
def test_training_set_without_boxes(boxes: Boxes, tmp_path: Path, which: str) -> None:
    chosen = boxes([[(10, 10, 50, 70)], []])
    learnt = {
        "none": boxes([[], []]),
        "crowds": replace(chosen, crowd=tuple(np.ones(len(b), bool) for b in chosen.boxes)),
        "surely nobody": replace(chosen, scores=tuple(np.zeros(len(b), np.float32) for b in chosen.boxes)),
    }[which]
    run = TrainOptions(out=tmp_path / "run", size_px=64, epochs=1)
    with pytest.raises(InputError, match=r"training set .*has no boxes"):
        PersonTask(learnt, chosen, {"stacks": 1, "width": 16}, run, tmp_path / "cache", {}, 64, 0.5)


def test_trains_on_several_files(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("park", "sport"):
        write_png(tmp_path / f"{name}.png", image)
        document = {
            "images": [{"id": 1, "file_name": f"{name}.png", "width": 64, "height": 48}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 40]}],
            "categories": [{"id": 1, "name": "person"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    park, sport, run = tmp_path / "park.json", tmp_path / "sport.json", tmp_path / "run"
    sizes = [
        "--size",
        "64",
        "--input",
        "64",
        "--width",
        "16",
        "--batch",
        "2",
        "--epochs",
        "1",
        "--workers",
        "0",
    ]
    places = ["--out", str(run), "--cache", str(tmp_path / "cache"), "--device", "cpu", "--workers", "0"]
    arguments = ["train", "person", str(park), str(sport), "--val", str(park), *sizes, *places]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 samples" in result.output
    assert read_card(run / "best.json").data == (str(park), str(sport))
