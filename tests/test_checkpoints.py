"""Public checkpoints: recognised, converted, refused; and decoded as their authors do."""

from __future__ import annotations

import io
import math
import os
import pickle
import shlex
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import checkpoint_b, checkpoints_a, family_a, run_a, run_b
from torch import Tensor
from typer.testing import CliRunner

from hgpose import checkpoints, heatmaps
from hgpose.checkpoints import LAYOUTS, convert, rename
from hgpose.cli import app
from hgpose.errors import OptionsError, OutputError, WeightsError
from hgpose.estimate import CropEstimator
from hgpose.geometry import heatmap_to_crop
from hgpose.keypoints import COCO17, MPII16
from hgpose.models.hourglass import StackedHourglass
from hgpose.network import Network
from hgpose.train.datasets import PoseSet
from hgpose.train.evaluate import pose_scores
from hgpose.weights import Card, load_weights

#: Two ways to add up the same numbers in float32; the maps' values are of the order of 1.
TOLERANCE = 1e-4


def saved(folder: Path, state: Any, name: str = "theirs.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {prefix + k: v for k, v in state.items()}, "best_acc": 0.9}


def maps_of(out: Path, image: Tensor) -> list[Tensor]:
    network, _ = load_weights(out, "pose")
    with torch.no_grad():
        found: list[Tensor] = network(image)
    return found


@pytest.mark.parametrize(("stacks", "millions"), [(1, "3.43"), (2, "6.57"), (8, "25.43")])
def test_published_sizes_of_our_network(stacks: int, millions: str) -> None:
    with torch.device("meta"):
        network = StackedHourglass(16, stacks, 256)
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}" == millions


def test_published_sizes() -> None:
    def millions(stacks: int, stem: tuple[int, int, int]) -> float:
        rows = family_a(stacks, 256, 16, stem)
        # A convolution has a bias, a batch normalisation (one number) a weight and a bias.
        return sum(math.prod(shape) + shape[0] for _, _, shape in rows) / 1e6

    # princeton-vl's stem, and bearpaw's, which is wider in its second residual.
    for stacks, narrow, wide in ((1, 3.43, 3.59), (2, 6.57, 6.73), (8, 25.43, 25.59)):
        assert millions(stacks, (64, 128, 128)) == pytest.approx(narrow, abs=0.005)
        assert millions(stacks, (64, 128, 256)) == pytest.approx(wide, abs=0.005)


@pytest.mark.parametrize("stem", [(8, 16, 16), (8, 16, 32)])
@pytest.mark.parametrize("stacks", [1, 2, 8])
def test_family_a_computes_what_its_authors_do(
    tmp_path: Path, stacks: int, stem: tuple[int, int, int]
) -> None:
    bearpaw, _ = checkpoints_a(stacks, stem=stem)
    convert(saved(tmp_path, bearpaw), tmp_path / "ours.safetensors")
    image = torch.randn(2, 3, 64, 128)
    found = maps_of(tmp_path / "ours.safetensors", image)
    expected = run_a(bearpaw, stacks, image)
    assert len(found) == stacks
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.1
        assert torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def hourglass52() -> dict[str, Tensor]:
    return checkpoint_b()


def test_family_b_computes_what_its_authors_do(tmp_path: Path, hourglass52: dict[str, Tensor]) -> None:
    file = saved(tmp_path, {"meta": {"epoch": 1}, "state_dict": hourglass52})
    card = convert(file, tmp_path / "b.safetensors", 384)
    assert card.architecture == {"kind": "hourglass52", "outputs": 17}
    assert (card.keypoint_set, card.input_px, card.box_padding) == ("coco17", 384, 1.25)
    assert (card.decoding, card.refine_from, card.offset_cells) == ("peak", 2, -0.375)
    assert card.shift_heatmap and card.center_shift == 0
    image = torch.randn(1, 3, 128, 128)
    (found,) = maps_of(tmp_path / "b.safetensors", image)
    expected = run_b(hourglass52, image)
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_head_of_mmpose_1(hourglass52: dict[str, Tensor]) -> None:
    tensors = {k: v for k, v in hourglass52.items() if not k.endswith("tracked")}
    old, *_ = rename(tensors, Path("old.pth"))
    renamed = {k.replace("keypoint_head.", "head."): v for k, v in tensors.items()}
    new, architecture, layout = rename(renamed, Path("new.pth"))
    assert (layout, architecture["outputs"]) == ("mmpose", 17)
    assert old.keys() == new.keys() and all(old[k] is new[k] for k in old)
    with pytest.raises(WeightsError, match=r"unexpected backbone\.hourglass_modules\.1\.x"):
        rename(tensors | {"backbone.hourglass_modules.1.x": torch.zeros(1)}, Path("104.pth"))


def test_four_layouts_of_the_same_numbers_agree_to_the_bit(tmp_path: Path) -> None:
    bearpaw, princeton = checkpoints_a(2)
    files = {
        "bearpaw": (prefixed(bearpaw, "module."), "bearpaw"),
        "anibali": (bearpaw, "bearpaw"),
        "princeton": (prefixed(princeton, "model.module."), None),
        "fpd": (prefixed(bearpaw, "module."), None),
    }
    image = torch.randn(1, 3, 64, 64)
    found = {}
    for name, (state, layout) in files.items():
        convert(saved(tmp_path, state, name), tmp_path / f"{name}.safetensors", layout=layout)
        found[name] = maps_of(tmp_path / f"{name}.safetensors", image)
    for name in ("anibali", "princeton", "fpd"):
        assert all(torch.equal(a, b) for a, b in zip(found["bearpaw"], found[name], strict=True))


def test_cards_say_the_conventions(tmp_path: Path) -> None:
    imagenet = (0.485, 0.456, 0.406)
    bearpaw, princeton = checkpoints_a(1, 256, stem=(64, 128, 256))
    narrow, _ = checkpoints_a(1, 32)
    cards = {
        name: convert(saved(tmp_path, state), tmp_path / f"{name}.safetensors", layout=layout)
        for name, state, layout in (
            ("bearpaw", bearpaw, None),
            ("princeton", princeton, None),
            ("fpd", narrow, None),
            ("fpd256", bearpaw, "fpd"),
        )
    }
    for name, card in cards.items():
        assert card.name == name and card.task == "pose"
        assert (card.keypoint_set, card.input_px, card.box_padding) == ("mpii16", 256, 1.25)
        assert card.center_shift == pytest.approx(15 / 200)
    means = [cards[n].mean for n in ("bearpaw", "princeton", "fpd", "fpd256")]
    assert means == [(0.4404, 0.4440, 0.4327), (0, 0, 0), imagenet, imagenet]
    assert [c.offset_cells for c in cards.values()] == [0, 0, -0.375, -0.375]
    assert [c.shift_heatmap for c in cards.values()] == [False, False, True, True]
    assert [c.decoding for c in cards.values()] == ["peak", "princeton", "peak", "peak"]
    assert [c.channels for c in cards.values()] == ["rgb", "rgb", "bgr", "bgr"]
    assert [c.empty_cell for c in cards.values()] == [-1, -1, 0, 0]
    assert [c.std for c in cards.values()][:2] == [(1, 1, 1)] * 2
    assert cards["bearpaw"].architecture["stem"] == [64, 128, 256]


@pytest.mark.parametrize(
    ("width", "stem", "layout", "told"),
    [
        (32, (8, 32, 32), "fpd", False),
        (32, (64, 32, 32), "bearpaw", False),
        (256, (64, 128, 256), "bearpaw", True),
    ],
)
def test_bearpaw_and_fpd_are_told_apart_by_the_stem(
    tmp_path: Path, width: int, stem: tuple[int, int, int], layout: str, told: bool
) -> None:
    file = saved(tmp_path, checkpoints_a(1, width, stem=stem)[0])
    arguments = ["weights", "convert", str(file), "-o", str(tmp_path / "ours.safetensors")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and f"'layout': '{layout}'" in result.stdout
    assert ("--layout fpd" in result.stderr) == told
    result = CliRunner().invoke(app, [*arguments, "--overwrite", "--layout", "fpd"])
    assert result.exit_code == 0 and "'layout': 'fpd'" in result.stdout and not result.stderr


@pytest.mark.parametrize("prefix", ["module.model.", "model.module.", "module.module."])
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    file = saved(tmp_path, prefixed(checkpoints_a(1)[0], prefix))
    assert convert(file, tmp_path / "ours.safetensors").keypoint_set == "mpii16"


def test_numbers_of_numpy_beside_the_tensors(tmp_path: Path) -> None:
    state, _ = checkpoints_a(1)
    meta = {"sigmas": np.ones(17), "names": np.array(["a", "b"]), "flags": np.array([True, False])}
    content = {"perf": np.float64(88.5), "epoch": np.int64(3), "meta": meta, "state_dict": state}
    convert(saved(tmp_path, content), tmp_path / "ours.safetensors")
    # As numpy 1 names its modules; the new name is longer, so the old one is written by hand.
    old = pickle.dumps(np.float64(1), 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old
    with torch.serialization.safe_globals(checkpoints._NUMPY):
        assert torch._weights_only_unpickler.load(io.BytesIO(old)) == 1


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    content = {
        "state_dict": checkpoints_a(1)[0],
        "extra": np.array([Evil(tmp_path / "it ran")], dtype=object),
    }
    file = saved(tmp_path, content)
    with pytest.raises(WeightsError, match="could run code"):
        convert(file, tmp_path / "ours.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.pth"]


class Optimizer:
    """Stands for what trainings leave in their checkpoints."""


def test_the_line_that_takes_the_state_dict_out_does(tmp_path: Path) -> None:
    file = saved(tmp_path, {"optimizer": Optimizer(), "state_dict": checkpoints_a(1)[0]}, "it's theirs.pth")
    with pytest.raises(WeightsError, match=r"Optimizer, which is no tensor.*only if you trust it") as error:
        convert(file, tmp_path / "ours.safetensors")
    _, _, line = str(error.value).partition("yourself: ")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, *shlex.split(line)[1:]]
    subprocess.run(words, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": path})
    convert(tmp_path / "it's theirs-tensors.pth", tmp_path / "ours.safetensors")


@pytest.mark.parametrize("kind", ["quantized", "nested"])
def test_a_bad_file_is_one_line_without_warnings(tmp_path: Path, kind: str) -> None:
    state = checkpoints_a(1)[0]
    with warnings.catch_warnings():
        # Torch warns when it makes such, and again when it reads them.
        warnings.simplefilter("ignore")
        odd = {
            "quantized": torch.quantize_per_tensor(torch.zeros(16), 0.1, 0, torch.quint8),
            "nested": torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]),
        }[kind]
        file = saved(tmp_path, state | {"score.0.bias": odd})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match=r"score\.0\.bias is no plain tensor") as error:
            convert(file, tmp_path / "ours.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["hello", "PK\x03\x04cos\nsystem\n", "<html>"])
def test_what_is_no_pickle_is_not_called_unsafe(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.pth").write_text(text)
    with pytest.raises(WeightsError, match=r"text\.pth: damaged, or no PyTorch file"):
        convert(tmp_path / "text.pth", tmp_path / "ours.safetensors")


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**6))
    with pytest.raises(WeightsError, match="damaged"):
        convert(tmp_path / "bomb.pth", tmp_path / "ours.safetensors")


def test_coco_network_of_family_a(tmp_path: Path) -> None:
    card = convert(saved(tmp_path, checkpoints_a(1, outputs=17)[0]), tmp_path / "c.safetensors")
    assert card.keypoint_set == "coco17" and card.center_shift == 0


def without(state: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a, p: without(a, "hg.0.hg.3.0.0.bn1.weight"),
            r"missing hg\.0\.hg\.3\.0\.0\.bn1\.weight",
        ),
        (
            lambda a, p: without(a, "layer2.0.conv3.weight"),
            r"missing layer2\.0\.conv3\.weight; unexpected none",
        ),
        (
            lambda a, p: without(a, "layer1.0.conv1.weight", "score.0.weight") | {"x" * 10**6: torch.ones(1)},
            r"looks like fpd .*missing layer1\.0\.conv1\.weight, score\.0\.weight; unexpected x{120}\.\.\.;?",
        ),
        (lambda a, p: {"hg.0.other": torch.ones(1)}, r"of no known layout .* hg\.0\.other"),
        (lambda a, p: a | {"module.conv1.weight": a["conv1.weight"]}, "tensors twice"),
        (
            lambda a, p: a | {"hg.0.hg.3.0.1.bn1.weight": a["bn1.weight"]},
            r"unexpected hg\.0\.hg\.3\.0\.1",
        ),
        (
            lambda a, p: without(p, "pre.4.skip_layer.conv.weight"),
            r"missing pre\.4\.skip_layer\.conv",
        ),
        (lambda a, p: p | {"extra": a["bn1.weight"]}, "looks like princeton .* unexpected extra"),
        (
            lambda a, p: a | {"fc.0.0.weight": torch.zeros(3, 3)},
            r"fc\.0\.0\.weight \(3, 3\) instead of \(32",
        ),
        (
            lambda a, p: a | {"score.0.weight": torch.tensor(1.0)},
            r"score\.0\.weight \(\) instead of \(16, 32",
        ),
        (lambda a, p: a | {"bn1.running_var": -torch.ones(8)}, r"bn1\.running_var is a variance below 0"),
        (lambda a, p: a | {"score.0.bias": torch.ones(16).to(torch.float8_e4m3fn)}, "not all finite real"),
        (lambda a, p: a | {"score.0.bias": torch.ones(16, dtype=torch.int32)}, "not all finite real"),
        (lambda a, p: a | {"score.0.weight": torch.zeros(1).expand(10**6, 10**6)}, "does not hold as many"),
        (lambda a, p: a | {"other": torch.zeros(1).expand(10**4, 10**4)}, "does not hold as many"),
        (lambda a, p: a | {"score.0.weight": torch.zeros(0, 32, 1, 1)}, "does not hold as many"),
        (lambda a, p: {"encoder.weight": torch.zeros(2)}, r"of no known layout .* encoder\.weight"),
        (lambda a, p: {}, "holds no state dict"),
        (lambda a, p: [1, 2], "holds no state dict"),
        (lambda a, p: {"state_dict": {"a": "text"}}, "holds no state dict"),
        (lambda a, p: checkpoints_a(1, outputs=5)[0], r"5 outputs; known .* 16 \(mpii16\), 17 \(coco17\)"),
    ],
)
def test_refused(tmp_path: Path, change: Callable[[Any, Any], Any], message: str) -> None:
    file = saved(tmp_path, change(*checkpoints_a(1)))
    with pytest.raises(WeightsError, match=rf"theirs\.pth: .*{message}"):
        convert(file, tmp_path / "ours.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.pth"]


def test_wrong_wishes(tmp_path: Path) -> None:
    _, princeton = checkpoints_a(1)
    file = saved(tmp_path, princeton)
    with pytest.raises(OptionsError, match="its layout is princeton, not bearpaw"):
        convert(file, tmp_path / "ours.safetensors", layout="bearpaw")
    with pytest.raises(OptionsError, match="one of bearpaw, princeton, fpd, mmpose, not 'keras'"):
        convert(file, tmp_path / "ours.safetensors", layout="keras")
    for size in (100, 0, -64, 2**40):
        with pytest.raises(OptionsError, match=rf"--size must be a multiple of 64 .*not {size}"):
            convert(file, tmp_path / "ours.safetensors", size)
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("theirs.pth", "-o", "ours.bin"), 2),
        (("theirs.pth", "-o", "ours.safetensors", "--size", "100"), 2),
        (("theirs.pth", "-o", "ours.safetensors", "--layout", "keras"), 2),
        (("gone.pth", "-o", "ours.safetensors"), 1),
        (("theirs.pth", "-o", "ours.safetensors"), 0),
    ],
)
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, checkpoints_a(1)[0])
    result = CliRunner().invoke(app, ["weights", "convert", *arguments])
    assert result.exit_code == code, result.output
    assert (tmp_path / "ours.safetensors").exists() == (code == 0)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    trace = tmp_path / "it ran"
    state, _ = checkpoints_a(1)
    write({"state_dict": state, "optimizer": Evil(trace)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: .*mkdir, which is no tensor and could run code"):
        convert(tmp_path / "evil.pth", tmp_path / "ours.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


@pytest.mark.parametrize("keep", [0, 10, 1000, 100_000])
def test_truncated(tmp_path: Path, keep: int) -> None:
    file = saved(tmp_path, checkpoints_a(1)[0])
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"theirs\.pth: damaged"):
        convert(file, tmp_path / "ours.safetensors")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path, checkpoints_a(1)[0])
    content = bytearray(file.read_bytes())
    # Into the middle of a tensor: a small change of a number, which no structure betrays.
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"theirs\.pth: damaged"):
        convert(file, tmp_path / "ours.safetensors")


def test_sums_may_be_left_out(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = saved(tmp_path, checkpoints_a(1)[0])
    finally:
        torch.serialization.set_crc32_options(True)
    convert(file, tmp_path / "ours.safetensors")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file"):
        convert(tmp_path / "gone.pth", tmp_path / "ours.safetensors")


def test_old_serialisation(tmp_path: Path) -> None:
    state, _ = checkpoints_a(1)
    torch.save(state, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "old.pth.tar", tmp_path / "ours.safetensors").keypoint_set == "mpii16"


# Decoding. The expected places are in the authors' own frames, put into ours by the test.


def peak_map(*cells: tuple[int, int, float]) -> Tensor:
    maps = torch.zeros(1, 1, 16, 24)
    for x, y, value in cells:
        maps[0, 0, y, x] = value
    return maps


def family_a_crop_px(cells: list[float]) -> list[float]:
    """Their crop px are 4 (h + 0.5), counted from the corner of the first pixel; ours from its middle."""
    return [4 * (h + 0.5) - 0.5 for h in cells]


def family_b_crop_px(cells: list[float]) -> list[float]:
    """Their crop px are 4 h, counted from the middle of the first pixel, as ours."""
    return [4 * h for h in cells]


PLACES = [
    # maps; (x, y) of bearpaw and anibali, of princeton-vl, of MMPose, of FPD; score
    (
        peak_map((10, 5, 0.8), (11, 5, 0.3), (10, 4, 0.2)),
        (10.25, 4.75), (10.25, 4.75), (10.25, 4.75), (10.25, 4.75), 0.8,
    ),
    # Ties: of neighbours (princeton-vl takes the one before), of peaks (the first in reading order), of a
    # flat map.
    (peak_map((10, 5, 0.8), (9, 5, 0.3)), (9.75, 5), (9.75, 4.75), (9.75, 5), (9.75, 5), 0.8),
    (peak_map((10, 5, 0.8), (9, 5, 0.3), (11, 5, 0.3)), (10, 5), (9.75, 4.75), (10, 5), (10, 5), 0.8),
    (peak_map((20, 3, 0.5), (4, 9, 0.5)), (20, 3), (19.75, 2.75), (20, 3), (20, 3), 0.5),
    (torch.full((1, 1, 16, 24), 0.25), (0, 0), (-0.25, -0.25), (0, 0), (0, 0), 0.25),
    # A peak in the first or last column or row is refined in neither direction, but by princeton-vl, to
    # whom the border's own cell is the neighbour beyond it.
    (peak_map((0, 5, 0.8), (1, 5, 0.3), (0, 6, 0.3)), (0, 5), (-0.25, 5.25), (0, 5), (0, 5), 0.8),
    (peak_map((23, 5, 0.8), (22, 5, 0.3), (23, 6, 0.3)), (23, 5), (23.25, 5.25), (23, 5), (23, 5), 0.8),
    (peak_map((8, 15, 0.8), (9, 15, 0.3)), (8, 15), (8.25, 15.25), (8, 15), (8, 15), 0.8),
    (peak_map((0, 0, 0.8), (1, 0, 0.3)), (0, 0), (-0.25, -0.25), (0, 0), (0, 0), 0.8),
    (peak_map((23, 15, 0.8)), (23, 15), (23.25, 15.25), (23, 15), (23, 15), 0.8),
    # The second column or row: MMPose and FPD refine from the third on.
    (peak_map((1, 5, 0.8), (2, 5, 0.3)), (1.25, 5), (1.25, 4.75), (1, 5), (1, 5), 0.8),
    (peak_map((22, 14, 0.8), (21, 14, 0.3)), (21.75, 14), (21.75, 13.75), (21.75, 14), (21.75, 14), 0.8),
    # Nothing positive: no cell, and to FPD the first; to princeton-vl the first's corner.
    (torch.zeros(1, 1, 16, 24), (-1, -1), (-0.5, -0.5), (-1, -1), (0, 0), 0),
    (torch.full((1, 1, 16, 24), -3.0), (-1, -1), (-0.5, -0.5), (-1, -1), (0, 0), 0),
    # Scores stay in [0, 1]; princeton-vl cuts maps off at 1, which makes ties.
    (peak_map((10, 5, 1.7)), (10, 5), (9.75, 4.75), (10, 5), (10, 5), 1),
    (peak_map((4, 9, 1.2), (20, 12, 1.7)), (20, 12), (3.75, 8.75), (20, 12), (20, 12), 1),
    (peak_map((4, 9, 1.7), (5, 9, 1.6)), (4.25, 9), (4.25, 8.75), (4.25, 9), (4.25, 9), 1),
]  # fmt: skip
CONVENTIONS = {
    "bearpaw": family_a_crop_px,
    "princeton": family_a_crop_px,
    "mmpose": family_b_crop_px,
    "fpd": family_b_crop_px,
}


@pytest.mark.parametrize("case", PLACES)
def test_decodes_as_published(case: tuple[Any, ...]) -> None:
    maps, *places, score = case
    cpu = torch.device("cpu")
    for (layout, to_crop), place in zip(CONVENTIONS.items(), places, strict=True):
        card = Card(layout, "pose", {}, 64, keypoint_set="coco17", **LAYOUTS[layout].card)
        points, scores = CropEstimator(Network(Echo().eval(), card, cpu, False))._decode(maps)
        found = heatmap_to_crop(points.numpy())[0, 0].tolist()
        assert found == pytest.approx(to_crop(list(place))), layout
        assert scores.item() == pytest.approx(score)


def test_many_maps_decode_apart() -> None:
    maps = torch.cat([torch.cat([m, m.flip(-1)], dim=1) for m, *_ in PLACES])
    for decode in (lambda m: heatmaps.decode_peak(m, 1, 0.0), heatmaps.decode_princeton):
        points, scores = decode(maps)
        for i, (m, *_) in enumerate(PLACES):
            alone, alone_scores = decode(m)
            assert torch.equal(points[i, :1], alone[0]) and torch.equal(scores[i, :1], alone_scores[0])


def test_shifted_flip() -> None:
    maps = torch.arange(17 * 6.0).reshape(1, 17, 1, 6)
    plain = heatmaps.flip(maps, COCO17.flip_order)
    shifted = heatmaps.flip(maps, COCO17.flip_order, shift=True)
    assert torch.equal(shifted[..., 1:], plain[..., :-1])
    assert torch.equal(shifted[..., 0], plain[..., 0])


class Echo(torch.nn.Module):
    """Answers with the brightness under each cell, as a network of MMPose places its peaks, at 4 h."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels[:, :1, ::4, ::4].expand(-1, 17, -1, -1)]


@pytest.fixture
def estimators() -> Iterator[Callable[..., CropEstimator]]:
    def make(flip_test: bool, **changes: Any) -> CropEstimator:
        fields: dict[str, Any] = {
            "mean": (0, 0, 0), "std": (1, 1, 1), "keypoint_set": "coco17", "decoding": "peak",
            "refine_from": 2, "offset_cells": -0.375, "shift_heatmap": True, "box_padding": 1.25,
        }  # fmt: skip
        card = Card("echo", "pose", {}, 64, **(fields | changes))
        return CropEstimator(Network(Echo().eval(), card, torch.device("cpu"), False), flip_test)

    yield make


@pytest.mark.parametrize("flip_test", [False, True])
def test_place_in_the_image(estimators: Callable[..., CropEstimator], flip_test: bool) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    ys, xs = np.mgrid[:100, :100]
    image[:] = (255 * np.exp(-((xs - 52) ** 2 + (ys - 40) ** 2) / 60)).astype(np.uint8)[..., None]
    estimator = estimators(flip_test)
    transform = estimator.transform(np.array([30, 20, 70, 60], np.float32))
    assert transform.width_px == 50
    points, scores, maps = estimator([image], [transform], keep_heatmaps=True)
    # A quarter of a cell, which spans 3 image px, and half a cell's rounding.
    assert np.abs(points[0] - [52, 40]).max() < 1.3
    assert 0.8 < scores.min() <= 1
    assert maps is not None and maps.min() >= 0 and maps.max() <= 1


def test_order_of_colours(estimators: Callable[..., CropEstimator]) -> None:
    # The network looks at its first channel only: red, or blue for one that wants blue first.
    image = np.zeros((64, 64, 3), np.uint8)
    image[20, 40], image[40, 20] = (255, 0, 0), (0, 0, 255)
    box = np.array([-0.5, -0.5, 63.5, 63.5], np.float32)
    for channels, place in (("rgb", (40, 20)), ("bgr", (20, 40))):
        for flip_test in (False, True):
            estimator = estimators(flip_test, box_padding=1.0, channels=channels)
            points, *_ = estimator([image], [estimator.transform(box)])
            assert np.abs(points[0] - place).max() < 3


def test_crop_of_mpii(estimators: Callable[..., CropEstimator]) -> None:
    # Centre (100, 80) and scale 2: a side of 400 px, seen 1.25 times as large and 15 px a unit lower.
    transform = estimators(False, center_shift=15 / 200).transform(
        np.array([-100, -120, 300, 280], np.float32)
    )
    assert transform.center_xy == pytest.approx((100, 80 + 15 * 2))
    assert transform.width_px == pytest.approx(200 * 2 * 1.25)


def test_pckh_as_published() -> None:
    k = len(MPII16)
    points = np.random.default_rng(0).uniform(0, 200, (2, k, 2)).astype(np.float32)
    visibility = np.full((2, k), 2, np.int8)
    wrist = MPII16.index("right_wrist")
    visibility[1, wrist] = 0
    people = PoseSet(
        MPII16.names, (Path("a"), Path("b")), np.arange(2), np.arange(2), np.zeros((2, 4), np.float32),
        points, visibility, (visibility > 0).astype(np.float32), np.zeros((2, k), np.bool_),
        np.full(2, 1e4, np.float32), head_sizes=np.full(2, 30, np.float32),
    )  # fmt: skip
    found = points.copy()
    # Half a head is right, a little more is wrong; pelvis and thorax do not count.
    found[0, MPII16.index("left_knee"), 0] += 14.9
    found[0, wrist, 0] += 15.1
    found[:, [MPII16.index("pelvis"), MPII16.index("thorax")]] += 100
    scored = pose_scores(people, found, np.ones((2, k), np.float32), MPII16.sigmas)
    assert set(scored["pckh@0.5"]["per_joint"]) == set(MPII16.names) - {"pelvis", "thorax"}
    assert scored["pckh@0.5"]["mean"] == pytest.approx(100 * 13 / 14)
    assert scored["pckh@0.5"]["weighted_mean"] == pytest.approx(100 * 26 / 27)
    assert "pelvis" in scored["pck@0.2"]["per_joint"]


@pytest.mark.parametrize("taken", ["ours.safetensors", "ours.json"])
def test_nothing_is_replaced_unless_asked(tmp_path: Path, taken: str) -> None:
    file = saved(tmp_path, checkpoints_a(1)[0])
    (tmp_path / taken).write_text("mine")
    with pytest.raises(OutputError, match=rf"{taken}: exists already"):
        convert(file, tmp_path / "ours.safetensors")
    assert (tmp_path / taken).read_text() == "mine"
    convert(file, tmp_path / "ours.safetensors", overwrite=True)


def test_odd_tensors_are_refused_by_name(tmp_path: Path) -> None:
    state = checkpoints_a(1)[0]
    key = "conv1.weight"
    for odd in (state[key].to_sparse(), state[key] * float("nan"), state[key].to(torch.complex64)):
        with pytest.raises(WeightsError, match=r"conv1\.weight is no"):
            convert(saved(tmp_path, state | {key: odd}), tmp_path / "ours.safetensors")


def test_a_far_off_stack_is_refused_at_once(tmp_path: Path) -> None:
    state = checkpoints_a(1)[0]
    with pytest.raises(WeightsError, match=r"score\.5000"):
        convert(
            saved(tmp_path, state | {"score.5000.weight": state["score.0.weight"]}),
            tmp_path / "a.safetensors",
        )
