"""The network of family B: its size, its shapes, what folding must not change."""

from __future__ import annotations

import pytest
import torch
from published import checkpoint_b
from torch import nn

from hgpose.models.hourglass import fold_batch_norms
from hgpose.models.hourglass52 import Hourglass, Hourglass52


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_published_size() -> None:
    with torch.device("meta"):
        network = Hourglass52(17)
    assert parameters(network) == 94_847_889
    stored = [v for k, v in checkpoint_b().items() if not k.endswith(("mean", "var", "tracked"))]
    assert sum(v.numel() for v in stored) == 94_847_889


@pytest.mark.parametrize(("outputs", "size_hw"), [(17, (256, 128))])
def test_shapes(outputs: int, size_hw: tuple[int, int]) -> None:
    h, w = size_hw
    with torch.device("meta"):
        (maps,) = Hourglass52(outputs)(torch.empty(2, 3, h, w))
    assert maps.shape == (2, outputs, h // 4, w // 4)


def test_stride() -> None:
    side = Hourglass52.stride_px
    assert side == 128
    with torch.device("meta"), pytest.raises(RuntimeError, match="broadcast"):
        Hourglass52(16).eval()(torch.empty(1, 3, side // 2, side // 2))


def test_folding_changes_no_output() -> None:
    torch.manual_seed(0)
    network = Hourglass((8, 16, 24), (2, 1, 2))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    network.eval()
    x = torch.randn(1, 8, 8, 12)
    with torch.no_grad():
        before = network(x)
        fold_batch_norms(network)
        after = network(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert before.abs().max() > 0.1
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4)
