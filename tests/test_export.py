"""Exported networks compute the same elsewhere, whatever the batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import files_no_larger_than

from hgpose import export as exports
from hgpose.errors import OptionsError, OutputError, WeightsError
from hgpose.export import export
from hgpose.models import build_model
from hgpose.network import Network
from hgpose.options import EstimatorOptions
from hgpose.weights import Card, load_weights, save_weights

#: Rounding in another order of additions; the maps are of the order of 1.
TOLERANCE = 1e-4
POSE = {"kind": "stacked_hourglass", "outputs": 17, "stacks": 2, "width": 8, "depth": 1}
FINDER = {"kind": "person_finder", "width": 8, "depth": 1}


def made(folder: Path, task: str) -> Path:
    torch.manual_seed(0)
    architecture: dict[str, Any] = POSE if task == "pose" else FINDER
    card = Card(task, task, architecture, 64, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), keypoint_set="coco17")
    save_weights(build_model(architecture).state_dict(), card, folder / f"{task}.safetensors")
    return folder / f"{task}.safetensors"


def expected(path: Path, task: str, images: torch.Tensor) -> list[np.ndarray]:
    network, _ = load_weights(path, task)
    with torch.no_grad():
        answer = network(images)
    return [answer[-1].numpy()] if task == "pose" else [a.numpy() for a in answer]


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_a_full_disk(tmp_path: Path, to: str) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
    path, out = made(tmp_path, "pose"), tmp_path / "out" / "net"
    with pytest.raises(OutputError, match=r"cannot write .*net: .*make room"), files_no_larger_than(1000):
        export(path, to, out)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("task", ["pose", "person"])
def test_onnx(tmp_path: Path, task: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path, out = made(tmp_path, task), tmp_path / "a folder" / "out.onnx"
    assert export(path, "onnx", out) <= TOLERANCE
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == (["maps"] if task == "pose" else ["centres", "distances"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["mean"] == [0.4, 0.5, 0.6] and card["task"] == task
    for count in (1, 4):
        images = torch.randn(count, 3, 64, 64)
        found = session.run(None, {"images": images.numpy()})
        for a, b in zip(found, expected(path, task, images), strict=True):
            assert a.shape[0] == count
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("task", ["pose", "person"])
def test_torchscript(tmp_path: Path, task: str) -> None:
    path, out = made(tmp_path, task), tmp_path / "out.pt"
    assert export(path, "torchscript", out) <= TOLERANCE
    extra = {"card": ""}
    network = torch.jit.load(out, _extra_files=extra)
    assert json.loads(extra["card"])["name"] == task
    for count in (1, 4):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            answer = network(images)
        found = [answer] if task == "pose" else answer
        for a, b in zip(found, expected(path, task, images), strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=TOLERANCE, atol=TOLERANCE)


def test_difference_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: Any, card: Card, trial: torch.Tensor, path: Path) -> list[torch.Tensor]:
        path.write_bytes(b"an exported network")
        return [network(trial).detach() * 1.01]

    monkeypatch.setitem(exports.FORMATS, "torchscript", wrong)
    with pytest.raises(WeightsError, match=r"out\.pt: computes something else"):
        export(made(tmp_path, "pose"), "torchscript", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_wrong_wishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, "pose")
    with pytest.raises(OptionsError, match="--to must be onnx or torchscript, not 'tflite'"):
        export(path, "tflite", tmp_path / "out")
    (tmp_path / "there.pt").touch()
    with pytest.raises(OutputError, match=r"there\.pt already exists"):
        export(path, "torchscript", tmp_path / "there.pt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OptionsError, match=r"pip install 'hgpose\[onnx\]'"):
        export(path, "onnx", tmp_path / "out.onnx")


#: By backend, the packages it needs.
BACKENDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["pose", "person"])
def test_backends(tmp_path: Path, backend: str, task: str) -> None:
    for package in BACKENDS[backend]:
        pytest.importorskip(package)
    path, cpu = made(tmp_path, task), torch.device("cpu")
    theirs, ours = (Network(*load_weights(path, task), cpu, False, b) for b in (backend, "torch"))
    for shape in ((1, 3, 64, 64), (3, 3, 64, 128)):
        crops = 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found, wanted = theirs(crops), ours(crops)
        if task == "pose":
            found, wanted = found[-1:], wanted[-1:]
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    path = made(tmp_path, "pose")
    with pytest.raises(OptionsError, match=f"{backend} computes on the CPU, not on meta"):
        Network(*load_weights(path, "pose"), torch.device("meta"), False, backend)
    for package in BACKENDS[backend]:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(OptionsError, match=rf"pip install 'hgpose\[{backend}\]'"):
                Network(*load_weights(path, "pose"), torch.device("cpu"), False, backend)


def test_onnx_has_no_half_precision(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="leave out --half"):
        Network(*load_weights(made(tmp_path, "pose"), "pose"), torch.device("cpu"), True, "onnx")


def test_unknown_backend() -> None:
    with pytest.raises(OptionsError, match="--backend must be torch, onnx or openvino, not 'tflite'"):
        EstimatorOptions(backend="tflite")
