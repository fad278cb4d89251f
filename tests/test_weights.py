"""The one door to weights: only what its card describes gets through."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from media import files_no_larger_than

from hgpose import weights
from hgpose.errors import OutputError, WeightsError
from hgpose.models.hourglass import StackedHourglass
from hgpose.weights import Card, find_weights, load_weights, read_card, save_weights, write_card

CARD = Card(
    name="tiny",
    task="pose",
    architecture={"kind": "stacked_hourglass", "outputs": 17, "stacks": 1, "width": 16},
    input_px=64,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.2, 0.2),
    keypoint_set="coco17",
    box_padding=1.25,
    data=("drawn, free",),
    scores={"pck@0.2": 12.5},
)


@pytest.fixture
def network() -> StackedHourglass:
    torch.manual_seed(0)
    return StackedHourglass(outputs=17, stacks=1, width=16).eval()


@pytest.fixture
def file(network: StackedHourglass, tmp_path: Path) -> Path:
    path = tmp_path / "a folder" / "tiny.safetensors"
    save_weights(network.state_dict(), CARD, path)
    return path


def change_card(file: Path, **changes: Any) -> None:
    card = file.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


def test_a_full_disk_leaves_what_was_there(network: StackedHourglass, file: Path) -> None:
    weights, card = file.read_bytes(), file.with_suffix(".json").read_bytes()
    with pytest.raises(OutputError, match=r"cannot write .*tiny\.safetensors: "), files_no_larger_than(1000):
        save_weights(network.state_dict(), CARD, file)
    with pytest.raises(OutputError, match=r"cannot write .*tiny\.json: "), files_no_larger_than(100):
        write_card(CARD, file)
    assert (file.read_bytes(), file.with_suffix(".json").read_bytes()) == (weights, card)
    assert len(list(file.parent.iterdir())) == 2


def test_there_and_back(network: StackedHourglass, file: Path) -> None:
    loaded, card = load_weights(file, "pose")
    assert card.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert Card(**vars(card) | {"sha256": ""}) == CARD
    assert not loaded.training
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            # Stored in half precision: eleven bits.
            assert torch.allclose(loaded.state_dict()[name], value, rtol=2**-11, atol=1e-6)
            assert loaded.state_dict()[name].dtype == torch.float32
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(image)[0], network(image)[0], atol=0.02)


def test_nothing_is_left_beside_the_files(file: Path) -> None:
    assert sorted(p.name for p in file.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_changed_bytes(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: SHA-256 is .*damaged"):
        load_weights(file, "pose")


def test_truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights(file, "pose")


def test_truncated_and_card_agrees(file: Path) -> None:
    data = file.read_bytes()[:1000]
    file.write_bytes(data)
    change_card(file, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: does not fit"):
        load_weights(file, "pose")


@pytest.mark.parametrize(
    "architecture",
    [
        {"kind": "stacked_hourglass", "outputs": 4, "stacks": 1, "width": 16},
        {"kind": "stacked_hourglass", "outputs": 17, "stacks": 2, "width": 16},
        {"kind": "stacked_hourglass", "wings": 2},
        {"kind": "unheard of"},
        {},
    ],
)
def test_other_architecture(file: Path, architecture: dict[str, Any]) -> None:
    change_card(file, architecture=architecture)
    with pytest.raises(WeightsError, match="does not fit the architecture"):
        load_weights(file, "pose")


def test_wrong_task(file: Path) -> None:
    with pytest.raises(WeightsError, match="for 'pose', wanted some for 'person'"):
        load_weights(file, "person")


def test_no_card(file: Path) -> None:
    file.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"tiny\.json: the model card that belongs to tiny\.safetensors"):
        load_weights(file, "pose")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"mean": 1, "std": 1, "data": 1}'])
def test_not_a_card(file: Path, text: str) -> None:
    file.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=r"tiny\.json: not a model card"):
        read_card(file)


def test_unknown_field_in_card(file: Path) -> None:
    change_card(file, colour="blue")
    with pytest.raises(WeightsError, match="colour"):
        read_card(file)


@pytest.mark.parametrize(
    "field",
    [
        {"name": 3}, {"name": "\ud800"}, {"task": "dance"}, {"architecture": "big"},
        {"input_px": "256"}, {"input_px": 0}, {"input_px": 10**9}, {"mean": [0.5]}, {"std": [0.2, 0.2, 0]},
        {"mean": [0.5, 0.5, float("nan")]}, {"box_padding": float("inf")},
        {"channels": "hsv"}, {"keypoint_set": "hand"}, {"box_padding": -1}, {"decoding": "guess"},
        {"refine_from": 0.5}, {"offset_cells": None}, {"licence": None}, {"sha256": 1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_field_in_card(file: Path, field: dict[str, Any]) -> None:
    change_card(file, **field)
    with pytest.raises(WeightsError, match=rf"tiny\.json: not a model card \(it says {next(iter(field))} ="):
        read_card(file)


def test_a_card_that_lacks_something(file: Path) -> None:
    card = json.loads(file.with_suffix(".json").read_text())
    del card["mean"]
    file.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"tiny\.json: not a model card \(it lacks 'mean'\)"):
        read_card(file)


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ({"task": "person"}, "task is 'person', but its network is a stacked_hourglass"),
        ({"keypoint_set": "body19"}, "keypoint_set is 'body19', but its network has 17 outputs"),
        ({"input_px": 96}, "input_px is 96, but its network takes multiples of 64"),
    ],
)
def test_a_card_that_does_not_fit_its_network(file: Path, field: dict[str, Any], fault: str) -> None:
    change_card(file, **field)
    with pytest.raises(WeightsError, match=rf"tiny\.json: {fault}; correct the card"):
        load_weights(file)


def test_checksums_in_capitals(file: Path) -> None:
    change_card(file, sha256=read_card(file).sha256.upper())
    load_weights(file)


def test_shipped_weights_that_are_damaged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_card(file, sha256="0" * 64)
    with pytest.raises(WeightsError, match="get both again"):
        load_weights(file)
    monkeypatch.setattr(weights, "weights_folder", lambda: file.parent)
    with pytest.raises(WeightsError, match="install hgpose again"):
        load_weights("tiny")


def test_shipped_weights_need_no_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("HGPOSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights, "weights_folder", lambda: file.parent)
    assert find_weights("tiny") == file
    with pytest.raises(WeightsError, match="set HGPOSE_CACHE"):
        find_weights("big")


def test_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "weights_folder", lambda: file.parent)
    assert weights.available() == ["tiny"]
    assert find_weights("tiny") == file
    assert find_weights(str(file)) == file
    for wrong in ("big", "x" * 300, "tiny.safetensors", "nowhere/tiny", str(file.with_suffix(".json"))):
        with pytest.raises(WeightsError, match=r"no such weights; shipped are: tiny;"):
            find_weights(wrong)


def test_no_weights_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path / "nothing")
    with pytest.raises(WeightsError, match="shipped are: none"):
        find_weights("pose-body19")
