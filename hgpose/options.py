"""Every option with its default, checked once. The command line and Python share them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hgpose.errors import OptionsError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionsError(message)


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained.

    Attributes:
        out: folder of the run: checkpoint, log, curves, best weights.
        size_px: side of the training crops, a multiple of 64.
        batch: samples a step.
        epochs, minutes: length of the training; exactly one of them.
        learning_rate: its highest value.
        warmup_steps: steps of linear rise.
        decay: the last share of the training, over which the learning rate falls linearly to 0.
        weight_decay: decoupled from the learning rate's gradient step.
        ema: decay a step of the averaged weights.
        seed: of initialisation, order and augmentation.
        resume: go on from the run's checkpoint.
        init: weights to begin with, a name or a path.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
        half: bfloat16 arithmetic where it pays; ``None``: where the processor has it.
        workers: processes that prepare crops.
        checkpoint_minutes, validation_minutes: at least how often to save and to score.
    """

    out: Path
    size_px: int = 128
    batch: int = 16
    epochs: float | None = None
    minutes: float | None = None
    learning_rate: float = 5e-3
    warmup_steps: int = 100
    decay: float = 0.35
    weight_decay: float = 0.01
    ema: float = 0.998
    seed: int = 0
    resume: bool = False
    init: str | None = None
    device: str = "auto"
    half: bool | None = None
    workers: int = 1
    checkpoint_minutes: float = 5.0
    validation_minutes: float = 15.0

    def __post_init__(self) -> None:
        _require(self.size_px > 0 and self.size_px % 64 == 0, f"--size must be a multiple of 64, not {self.size_px}")
        _require(self.batch >= 2, f"--batch must be at least 2, not {self.batch}")
        _require((self.epochs is None) != (self.minutes is None), "give either --epochs or --minutes")
        _require((self.epochs or self.minutes or 0) > 0, "--epochs and --minutes must be above 0")
        _require(self.learning_rate > 0, f"--lr must be above 0, not {self.learning_rate}")
        _require(0 <= self.decay <= 1, f"--decay must lie in 0 to 1, not {self.decay}")
        _require(self.workers >= 0, f"--workers must not be negative, not {self.workers}")
        _require(0 < self.checkpoint_minutes <= 10, "--checkpoint-minutes must lie in 0 to 10")
