"""Every option with its default, checked once. The command line and Python share them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from hgpose.errors import OptionsError

#: OpenCV draws no line wider than 2**15 px, of which the outline takes some.
_WIDEST_PX = 10_000
#: So many full HD frames waiting for their batch take 1.6 GB; no processor gains by more.
_LARGEST_BATCH = 256


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionsError(message)


def _require_kinds(save: tuple[str, ...]) -> None:
    _require(not isinstance(save, str), f"save must hold kinds of files, such as ({save!r},)")
    _require(bool(save), "--save needs at least one kind")


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
        init: weights to begin with, a name or a path; a person finder can begin as a pose network, too.
        freeze_stem: leave the stem as ``init`` has it. It is the dearest part to train, and what it has
            learned serves everywhere.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
        half: bfloat16 arithmetic where it pays; ``None``: where the processor has it.
        workers: processes that prepare crops.
        checkpoint_minutes: at least how often to save.
        validation_minutes: how often to score a run of so many minutes; one of so many epochs is scored
            after each, or about twenty times in all.
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
    freeze_stem: bool = False
    device: str = "auto"
    half: bool | None = None
    workers: int = 1
    checkpoint_minutes: float = 5.0
    validation_minutes: float = 15.0

    def __post_init__(self) -> None:
        _require(
            self.size_px > 0 and self.size_px % 64 == 0,
            f"--size must be a multiple of 64, not {self.size_px}",
        )
        _require(self.batch >= 2, f"--batch must be at least 2, not {self.batch}")
        _require((self.epochs is None) != (self.minutes is None), "give either --epochs or --minutes")
        length = self.epochs or self.minutes or 0
        _require(0 < length < math.inf, "--epochs and --minutes must be above 0, and finite")
        _require(0 <= self.seed < 2**63, f"--seed must lie in 0 to 2^63, not {self.seed}")
        _require(self.learning_rate > 0, f"--lr must be above 0, not {self.learning_rate}")
        _require(0 <= self.decay <= 1, f"--decay must lie in 0 to 1, not {self.decay}")
        _require(self.init is not None or not self.freeze_stem, "--freeze-stem goes with --init only")
        _require(self.workers >= 0, f"--workers must not be negative, not {self.workers}")
        _require(0 < self.checkpoint_minutes <= 10, "--checkpoint-minutes must lie in 0 to 10")


@dataclass(frozen=True)
class EstimatorOptions:
    """How people and their keypoints are found, and followed through the frames of a video or camera.

    Attributes:
        weights: of the pose network, a shipped name or a .safetensors file.
        detector: ``person`` (the trained finder), ``whole-frame`` or ``boxes:FILE``.
        person: ``all``, ``largest``, ``center`` (nearest to the image's centre) or ``id:N``.
        max_people: at most so many a frame, the surest first; of people who are followed, those
            followed longest.
        min_person_score: people whose mean keypoint score is lower are taken for none.
        flip_test: also run mirrored crops and average: slower, more accurate.
        batch: crops, and frames, that go through a network at once, at most.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
        half: half precision inside the networks; ``None``: where it is faster.
        backend: what computes the networks, ``torch`` or, on a CPU, ``onnx`` or ``openvino``.
        heatmaps: keep the probability maps, for drawing.
        track: follow people: ids, boxes from the frame before, smoothing. Otherwise every frame is taken
            by itself.
        lost_s: a person who is out of sight for longer gets a new id, seconds.
        smooth: ``none``, ``live`` (as frames come) or ``full`` (looks ahead, no lag, bridges short gaps);
            ``None``: full for videos, live for a camera.
        fix_sides: put left and right keypoints right that change places for a few frames, and shoulders, hips
            and their limbs for up to half a second; live, only the latter, by the frames before.
        keep_raw: keep the network's own keypoints beside those smoothed.
    """

    weights: str = "pose-body19"
    detector: str = "person"
    person: str = "all"
    max_people: int | None = None
    min_person_score: float = 0.1
    flip_test: bool = False
    batch: int = 8
    device: str = "auto"
    half: bool | None = None
    backend: str = "torch"
    heatmaps: bool = False
    track: bool = True
    lost_s: float = 1.0
    smooth: str | None = None
    fix_sides: bool = True
    keep_raw: bool = False

    def __post_init__(self) -> None:
        boxes = self.detector.startswith("boxes:") and len(self.detector) > len("boxes:")
        _require(
            boxes or self.detector in {"person", "whole-frame"},
            f"--detector must be person, whole-frame or boxes:FILE, not {self.detector!r}",
        )
        by_id = re.fullmatch(r"id:[0-9]+", self.person) is not None
        _require(
            by_id or self.person in {"all", "largest", "center"},
            f"--person must be all, largest, center or id:N, not {self.person!r}",
        )
        _require(self.track or not by_id, f"--person {self.person} needs ids: leave out --no-track")
        _require(self.max_people is None or self.max_people >= 1, "--max-people must be at least 1")
        _require(
            1 <= self.batch <= _LARGEST_BATCH,
            f"--batch must lie in 1 to {_LARGEST_BATCH}, not {self.batch}",
        )
        _require(
            self.backend in {"torch", "onnx", "openvino"},
            f"--backend must be torch, onnx or openvino, not {self.backend!r}",
        )
        _require(0 <= self.min_person_score <= 1, "--min-person-score must lie in 0 to 1")
        _require(
            0 <= self.lost_s < math.inf, f"--lost must be a number of seconds from 0 on, not {self.lost_s}"
        )
        _require(
            self.smooth in {None, "none", "live", "full"},
            f"--smooth must be none, live or full, not {self.smooth!r}",
        )
        _require(
            self.track or self.smooth in {None, "none"},
            f"--smooth {self.smooth} goes without --no-track only",
        )
        _require(self.track or not self.keep_raw, "--keep-raw goes without --no-track only")

    @property
    def boxes_file(self) -> Path:
        """The file of ``boxes:FILE``."""
        return Path(self.detector.removeprefix("boxes:"))


@dataclass(frozen=True)
class Style:
    """How people are drawn.

    Attributes:
        line_width: px; ``None`` goes by the size of the person and the image.
        black: on black instead of the picture.
        boxes: the box of each person, its colour by id.
        labels: id and score at the box.
        threshold: keypoints of a lower score are hidden; a limb needs both its ends.
    """

    line_width: int | None = None
    black: bool = False
    boxes: bool = True
    labels: bool = False
    threshold: float = 0.3

    def __post_init__(self) -> None:
        _require(
            self.line_width is None or 1 <= self.line_width <= _WIDEST_PX,
            f"--line-width must lie in 1 to {_WIDEST_PX}, not {self.line_width}",
        )
        _require(0 <= self.threshold <= 1, f"--threshold must lie in 0 to 1, not {self.threshold}")


DEFAULT_STYLE = Style()


@dataclass(frozen=True)
class VideoOptions:
    """What is taken from a source, and what is written.

    Attributes:
        save: kinds of output, see :data:`hgpose.sinks.SINKS`.
        start_s, end_s: the part of a video, seconds from its beginning; ``None``: to the end.
        every: take every n-th frame.
        detect_every: of people who are followed, look anew on every n-th frame taken at least; between,
            each person is looked for where it should be by now.
        overwrite: replace files of an earlier run.
        resume: go on where an earlier run of the same videos was interrupted; those finished are left.
        chunk_s: length of the chunks that are resumed or shared out as a whole, seconds of video.
        style: how overlays are drawn.
    """

    save: tuple[str, ...] = ("overlay", "csv", "json")
    start_s: float = 0.0
    end_s: float | None = None
    every: int = 1
    detect_every: int = 8
    overwrite: bool = False
    resume: bool = False
    chunk_s: float = 60.0
    style: Style = DEFAULT_STYLE

    def __post_init__(self) -> None:
        _require_kinds(self.save)
        _require(
            0 <= self.start_s < math.inf, f"--start must be a number of seconds from 0 on, not {self.start_s}"
        )
        _require(self.end_s is None or self.end_s > self.start_s, "--end must lie after --start")
        _require(
            isinstance(self.every, int) and self.every >= 1,
            f"--every must be a whole number from 1 on, not {self.every}",
        )
        _require(self.detect_every >= 1, f"--detect-every must be at least 1, not {self.detect_every}")
        _require(self.chunk_s > 0, f"chunk_s must be above 0, not {self.chunk_s}")


@dataclass(frozen=True)
class BatchOptions:
    """Who does the work of a batch.

    Attributes:
        workers: processes at work; ``None``: one for each GPU, or else for each processor core.
        engine: ``local``, or ``ray`` for the machines of a Ray cluster.
        address: of the Ray cluster; ``None``: one that is begun on this machine.
    """

    workers: int | None = None
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        _require(self.workers is None or self.workers >= 1, "--workers must be at least 1")
        _require(self.engine in {"local", "ray"}, f"--engine must be local or ray, not {self.engine!r}")
        _require(self.address is None or self.engine == "ray", "--address goes with --engine ray only")


@dataclass(frozen=True)
class CameraOptions:
    """What is done with a camera's frames.

    Attributes:
        mirror: swap left and right, as one expects of one's own picture.
        record: folder for the same files as of a video; ``None``: nothing is kept.
        save: kinds of files to record, see :data:`hgpose.sinks.SINKS`.
        detect_every: as of :class:`VideoOptions`.
        window: show a window where there is a display.
        serve: port of the preview in the browser, 0 for any free one; ``None``: no such preview.
        host: address it listens on. Any but loopback lets others in the network watch.
        style: how people are drawn.
    """

    mirror: bool = False
    record: str | Path | None = None
    save: tuple[str, ...] = ("overlay", "csv", "json")
    detect_every: int = 8
    window: bool = True
    serve: int | None = None
    host: str = "127.0.0.1"
    style: Style = DEFAULT_STYLE

    def __post_init__(self) -> None:
        _require_kinds(self.save)
        _require(self.detect_every >= 1, f"--detect-every must be at least 1, not {self.detect_every}")
        _require(
            self.serve is None or 0 <= self.serve < 2**16, f"--serve must lie in 0 to 65535, not {self.serve}"
        )
