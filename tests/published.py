"""Public checkpoints as their authors' code would save them, and their networks, written a second time.

Names and shapes come from tables, the networks are plain functions of the public names: nothing here
knows how the package builds its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

#: Name at bearpaw's, name at princeton-vl's, shape of the weight.
_Row = tuple[str, str, tuple[int, ...]]


def _residual(bearpaw: str, princeton: str, a: int, b: int) -> Iterator[_Row]:
    half = b // 2
    shapes = {"1": (half, a, 1, 1), "2": (half, half, 3, 3), "3": (b, half, 1, 1)}
    for n, shape in shapes.items():
        yield f"{bearpaw}.bn{n}", f"{princeton}.bn{n}", (shape[1],)
        yield f"{bearpaw}.conv{n}", f"{princeton}.conv{n}.conv", shape
    if a != b:
        yield f"{bearpaw}.downsample.0", f"{princeton}.skip_layer.conv", (b, a, 1, 1)


def family_a(stacks: int, width: int, outputs: int, stem: tuple[int, int, int]) -> Iterator[_Row]:
    """Every layer of a network of family A."""
    a, b, c = stem
    yield "conv1", "pre.0.conv", (a, 3, 7, 7)
    yield "bn1", "pre.0.bn", (a,)
    yield from _residual("layer1.0", "pre.1", a, b)
    yield from _residual("layer2.0", "pre.3", b, c)
    yield from _residual("layer3.0", "pre.4", c, width)
    for s in range(stacks):
        for level in (3, 2, 1, 0):
            outer = f"hgs.{s}.0" + ".low2" * (3 - level)
            for place, name in enumerate(("up1", "low1", "low3")):
                yield from _residual(f"hg.{s}.hg.{level}.{place}.0", f"{outer}.{name}", width, width)
        yield from _residual(f"hg.{s}.hg.0.3.0", f"hgs.{s}.0.low2.low2.low2.low2", width, width)
        yield from _residual(f"res.{s}.0", f"features.{s}.0", width, width)
        yield f"fc.{s}.0", f"features.{s}.1.conv", (width, width, 1, 1)
        yield f"fc.{s}.1", f"features.{s}.1.bn", (width,)
        yield f"score.{s}", f"outs.{s}.conv", (outputs, width, 1, 1)
        if s < stacks - 1:
            yield f"fc_.{s}", f"merge_features.{s}.conv.conv", (width, width, 1, 1)
            yield f"score_.{s}", f"merge_preds.{s}.conv.conv", (width, outputs, 1, 1)


def _fill(name: str, shape: tuple[int, ...], bias: bool, generator: torch.Generator) -> State:
    """A convolution's or (for a shape of one number) a batch normalisation's tensors."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(shape[0], generator=generator) * (high - low) + low

    if len(shape) == 1:
        return {
            f"{name}.weight": uniform(0.5, 1.5),
            f"{name}.bias": uniform(-0.3, 0.3),
            f"{name}.running_mean": uniform(-0.3, 0.3),
            f"{name}.running_var": uniform(0.5, 1.5),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }
    fan_in = shape[1] * shape[2] * shape[3]
    weight = torch.randn(shape, generator=generator) * (1.5 / fan_in) ** 0.5
    return {f"{name}.weight": weight} | ({f"{name}.bias": uniform(-0.1, 0.1)} if bias else {})


def checkpoints_a(
    stacks: int = 2, width: int = 32, outputs: int = 16, stem: tuple[int, int, int] = (8, 16, 16)
) -> tuple[State, State]:
    """The same network at bearpaw's (also anibali's and FPD's) and at princeton-vl's."""
    generator = torch.Generator().manual_seed(1)
    bearpaw: State = {}
    princeton: State = {}
    for first, second, shape in family_a(stacks, width, outputs, stem):
        tensors = _fill(first, shape, True, generator)
        bearpaw |= tensors
        princeton |= {second + key.removeprefix(first): value for key, value in tensors.items()}
    # Where the widths agree princeton-vl stores a skip that is never run.
    for key in [k for k in princeton if k.endswith(".conv3.conv.weight")]:
        skip, channels = key.replace("conv3.conv.weight", "skip_layer.conv"), princeton[key].shape[0]
        if f"{skip}.weight" not in princeton:
            princeton |= _fill(skip, (channels, channels, 1, 1), True, generator)
    return bearpaw, princeton


_CHANNELS = (256, 256, 384, 384, 384, 512)
_BLOCKS = (2, 2, 2, 2, 2, 4)


def _basic(name: str, a: int, b: int, stride: int = 1) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.conv1", (b, a, 3, 3)
    yield f"{name}.bn1", (b,)
    yield f"{name}.conv2", (b, b, 3, 3)
    yield f"{name}.bn2", (b,)
    if a != b or stride != 1:
        yield f"{name}.downsample.0", (b, a, 1, 1)
        yield f"{name}.downsample.1", (b,)


def _family_b() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "backbone.stem.0.conv", (128, 3, 7, 7)
    yield "backbone.stem.0.bn", (128,)
    yield from _basic("backbone.stem.1.0", 128, 256, 2)
    name = "backbone.hourglass_modules.0"
    for level in range(5):
        here, below, count = _CHANNELS[level], _CHANNELS[level + 1], _BLOCKS[level]
        for i in range(count):
            yield from _basic(f"{name}.up1.{i}", here, here)
            yield from _basic(f"{name}.low1.{i}", here if i == 0 else below, below, 2 if i == 0 else 1)
            yield from _basic(f"{name}.low3.{i}", below, here if i == count - 1 else below)
        name += ".low2"
    for i in range(_BLOCKS[5]):
        yield from _basic(f"{name}.{i}", 512, 512)
    yield from _basic("backbone.inters.0", 256, 256)
    yield "backbone.out_convs.0.conv", (256, 256, 3, 3)
    yield "backbone.out_convs.0.bn", (256,)


def checkpoint_b(outputs: int = 17) -> State:
    """MMPose's hourglass52, under the names of version 0.x."""
    generator = torch.Generator().manual_seed(2)
    state: State = {}
    for name, shape in _family_b():
        state |= _fill(name, shape, False, generator)
    return state | _fill("keypoint_head.multi_final_layers.0", (outputs, 256, 1, 1), True, generator)


def _conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def _norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], False, 0.0, 1e-5)


def _pre_activation(s: State, name: str, x: Tensor) -> Tensor:
    y = x
    for n in "123":
        y = _conv(s, f"{name}.conv{n}", F.relu(_norm(s, f"{name}.bn{n}", y)))
    skip = f"{name}.downsample.0"
    return y + (_conv(s, skip, x) if f"{skip}.weight" in s else x)


def _hourglass_a(s: State, stack: int, level: int, x: Tensor) -> Tensor:
    def at(place: int, y: Tensor) -> Tensor:
        return _pre_activation(s, f"hg.{stack}.hg.{level}.{place}.0", y)

    low = at(1, F.max_pool2d(x, 2))
    low = _hourglass_a(s, stack, level - 1, low) if level else at(3, low)
    return at(0, x) + F.interpolate(at(2, low), scale_factor=2)


def run_a(s: State, stacks: int, x: Tensor) -> list[Tensor]:
    """What a network of family A answers, every stack; ``s`` under bearpaw's names."""
    x = F.relu(_norm(s, "bn1", _conv(s, "conv1", x, 2)))
    x = F.max_pool2d(_pre_activation(s, "layer1.0", x), 2)
    x = _pre_activation(s, "layer3.0", _pre_activation(s, "layer2.0", x))
    maps = []
    for i in range(stacks):
        y = _pre_activation(s, f"res.{i}.0", _hourglass_a(s, i, 3, x))
        y = F.relu(_norm(s, f"fc.{i}.1", _conv(s, f"fc.{i}.0", y)))
        maps.append(_conv(s, f"score.{i}", y))
        if i < stacks - 1:
            x = x + _conv(s, f"fc_.{i}", y) + _conv(s, f"score_.{i}", maps[-1])
    return maps


def _post_activation(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    y = F.relu(_norm(s, f"{name}.bn1", _conv(s, f"{name}.conv1", x, stride)))
    y = _norm(s, f"{name}.bn2", _conv(s, f"{name}.conv2", y))
    if f"{name}.downsample.0.weight" in s:
        x = _norm(s, f"{name}.downsample.1", _conv(s, f"{name}.downsample.0", x, stride))
    return F.relu(y + x)


def _chain(s: State, name: str, count: int, x: Tensor, stride: int = 1) -> Tensor:
    for i in range(count):
        x = _post_activation(s, f"{name}.{i}", x, stride if i == 0 else 1)
    return x


def _hourglass_b(s: State, name: str, level: int, x: Tensor) -> Tensor:
    low = _chain(s, f"{name}.low1", _BLOCKS[level], x, 2)
    inner = f"{name}.low2"
    low = _hourglass_b(s, inner, level + 1, low) if level < 4 else _chain(s, inner, _BLOCKS[5], low)
    low = _chain(s, f"{name}.low3", _BLOCKS[level], low)
    return _chain(s, f"{name}.up1", _BLOCKS[level], x) + F.interpolate(low, scale_factor=2)


def run_b(s: State, x: Tensor) -> Tensor:
    """What hourglass52 answers; ``s`` under the names of MMPose 0.x."""
    x = F.relu(_norm(s, "backbone.stem.0.bn", _conv(s, "backbone.stem.0.conv", x, 2)))
    x = _post_activation(s, "backbone.stem.1.0", x, 2)
    x = _hourglass_b(s, "backbone.hourglass_modules.0", 0, x)
    x = F.relu(_norm(s, "backbone.out_convs.0.bn", _conv(s, "backbone.out_convs.0.conv", x)))
    return _conv(s, "keypoint_head.multi_final_layers.0", x)
