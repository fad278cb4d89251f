"""The training loop: any task, any device; stops and goes on at any step as if it had not stopped."""

from __future__ import annotations

import copy
import csv
import ctypes
import hashlib
import importlib.util
import io
import math
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from hgpose.atomic import atomic_path, output_errors
from hgpose.device import choose_device, has_fast_bfloat16, to_device
from hgpose.errors import TrainingError
from hgpose.models.finder import PersonFinder
from hgpose.models.hourglass import StackedHourglass
from hgpose.options import TrainOptions
from hgpose.train.optim import Muon
from hgpose.weights import Card, load_weights, save_weights

#: Steps between two looks at the loss; each look waits for the device.
_LOOK_STEPS = 20
#: A run of so many epochs is validated about so often, at most once an epoch.
_VALIDATIONS = 20
_CHECKPOINT, _BEST = "checkpoint.pt", "best.safetensors"
#: A row of ``log.csv`` holds either the loss since the row before, or the score of a validation.
_LOG_COLUMNS = ("step", "samples", "seconds", "loss", "samples_per_s", "score")
#: What PyTorch answers a file that is none of its own, or one of another network.
_NOT_A_CHECKPOINT = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)

#: Mean and standard deviation of RGB in [0, 1] over ImageNet photographs, the usual normalisation.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, card: Card) -> Tensor:
    """``(N, 3, H, W)`` uint8 RGB as the card's network wants it: float32, channels_last."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (card.mean, card.std))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class Samples(Dataset[dict[str, Any]], ABC):
    """What is trained on: so many items, asked for by (epoch, index)."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""


class Task(Protocol):
    """What is trained: samples, network, loss and the number that tells good from better."""

    name: str

    @property
    def dataset(self) -> Samples:
        """Items are asked for by (epoch, index) and depend on these and the seed alone."""
        ...

    def build(self) -> nn.Module:
        """A freshly initialised network."""
        ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scalar loss of a batch that is on the model's device."""
        ...

    def validate(self, model: nn.Module, device: torch.device, half: bool) -> dict[str, float]:
        """Scores on the validation set, in percent; the first decides which weights are the best."""
        ...

    def card(self) -> Card:
        """The card of the weights, without checksum and scores."""
        ...

    def data(self) -> tuple[str, str]:
        """The :func:`checksum` of what is learnt from, and of what the best weights are chosen on."""
        ...


def checksum(files: Sequence[Path], labels: Iterable[NDArray[Any]]) -> str:
    """A name of twelve digits for annotated images, the same wherever their folder lies."""
    key = hashlib.sha1("\0".join(file.name for file in files).encode(errors="surrogateescape"))
    for array in labels:
        key.update(np.ascontiguousarray(array).tobytes())
    return key.hexdigest()[:12]


def check_run(options: TrainOptions) -> None:
    """Whether a run can begin, or go on, in its folder.

    Raises:
        TrainingError: an earlier run is in the way, there is nothing to resume, or matplotlib is missing.
        OutputError: the folder cannot be made.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("the curves need matplotlib: pip install 'hgpose[train]'")
    with output_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    if options.resume:
        if not (options.out / _CHECKPOINT).exists():
            raise TrainingError(
                f"{options.out / _CHECKPOINT}: nothing to resume; leave out --resume to begin"
            )
        return
    for file in (options.out / _CHECKPOINT, options.out / _BEST):
        if file.exists():
            raise TrainingError(f"{file} is there from an earlier run: add --resume, or choose another --out")


@dataclass(frozen=True)
class Progress:
    """Where a training stands: step, share done in [0, 1], loss, samples a second, seconds left."""

    step: int
    done: float
    loss: float
    samples_per_s: float
    left_s: float
    scores: dict[str, float]


class _Order(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index): a shuffle an epoch, a function of the seed alone."""

    def __init__(self, size: int, batch: int, seed: int, first_step: int) -> None:
        self.size, self.batch, self.seed, self.first_step = size, batch, seed, first_step
        self.steps_per_epoch = max(size // batch, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, step = divmod(self.first_step, self.steps_per_epoch)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            for i in range(step, self.steps_per_epoch):
                yield [(epoch, int(j)) for j in order[i * self.batch : (i + 1) * self.batch]]
            epoch, step = epoch + 1, 0


def _start_worker(_: int) -> None:
    # One process, one core: OpenCV's own threads would fight the network for the rest.
    cv2.setNumThreads(0)


def _keep_freed_memory() -> None:
    """Has glibc keep what a step has freed for the next one.

    It otherwise hands such large blocks back to the system, which clears them page by page when they are
    asked for again: a good part of a step, of one with ``--freeze-stem`` above all.
    """
    if sys.platform == "linux":
        # Numbers from malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, of which 32 MB is the most.
        # Other C libraries lack the function, or take it for nothing.
        with suppress(AttributeError):
            tune = ctypes.CDLL(None).mallopt
            tune(-1, 2**31 - 1)
            tune(-3, 2**25)


def _optimizers(model: nn.Module, options: TrainOptions) -> list[Optimizer]:
    """Muon for the kernels inside the network, AdamW for first and last layers, biases and norms."""
    kernels: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        inner = p.ndim == 4 and "score" not in name and not name.endswith("stem.conv.weight")
        (kernels if inner else others).append(p)
    rate, decay = options.learning_rate, options.weight_decay
    return [Muon(kernels, rate, weight_decay=decay), AdamW(others, rate, weight_decay=decay)]


class Trainer:
    """One run of training in a folder.

    Files there: ``checkpoint.pt`` (to resume), ``stable.pt`` (the last one before the learning rate
    began to fall; ``--resume`` from a copy of it prolongs a run), ``best.safetensors`` and its card,
    ``log.csv``, ``curves.png``.

    Raises:
        TrainingError: fewer than two samples, nothing to resume or a run in the way, weights to begin
            with that do not fit, or no matplotlib for the curves.
        OutputError: the folder cannot be made.
    """

    def __init__(self, task: Task, options: TrainOptions) -> None:
        self.task, self.options = task, options
        check_run(options)
        self.samples = len(task.dataset)
        #: Of a step: a set may be smaller than a batch.
        self.batch = min(options.batch, self.samples)
        if self.samples < 2:
            raise TrainingError(
                f"a training needs at least 2 samples, there are {self.samples}: add annotations"
            )
        self.device = choose_device(options.device)
        self.half = has_fast_bfloat16(self.device) if options.half is None else options.half
        torch.manual_seed(options.seed)
        model = task.build()
        if options.init:
            trained, card = load_weights(options.init)
            try:
                assert isinstance(model, StackedHourglass | PersonFinder)
                model.begin_as(trained)
            except RuntimeError:
                raise TrainingError(
                    f"--init {options.init}: its network is {card.architecture}, that of this run "
                    f"{task.card().architecture}: train the same"
                ) from None
        if options.freeze_stem:
            model.get_submodule("stem").requires_grad_(False)
        self.model = to_device(model, self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = _optimizers(self.model, options)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        #: Step and seconds of the last validation.
        self.validated = 0, 0.0
        self.scores: dict[str, float] = {}
        self.log_file = options.out / "log.csv"
        self.checkpoint = options.out / _CHECKPOINT
        # What a run that goes on must have in common with the one that began.
        learnt, chosen = task.data()
        self._same = {
            "--batch": options.batch,
            "--seed": options.seed,
            "--size": options.size_px,
            "the network": str(task.card().architecture),
            "annotations of checksum": learnt,
            "a --val of checksum": chosen,
        }
        if options.resume:
            self._restore()
        self._cut_log()

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every sample once."""
        return max(self.samples // self.options.batch, 1)

    @property
    def done(self) -> float:
        """Share of the training that lies behind, in [0, 1]."""
        if self.options.epochs is not None:
            return min(self.step / (self.options.epochs * self.steps_per_epoch), 1.0)
        assert self.options.minutes is not None
        return min(self.seconds / (self.options.minutes * 60), 1.0)

    @property
    def _validation_is_due(self) -> bool:
        options = self.options
        if options.epochs is None:
            clock = [int(s / (options.validation_minutes * 60)) for s in (self.seconds, self.validated[1])]
        else:
            # On the same steps however fast the machine is, and however often the run is resumed.
            steps = math.ceil(options.epochs / _VALIDATIONS) * self.steps_per_epoch
            clock = [step // steps for step in (self.step, self.validated[0])]
        return clock[0] > clock[1]

    def run(self, report: Callable[[Progress], None]) -> Path:
        """Trains to the end and returns the best weights' file.

        Raises:
            TrainingError: loss, weights or score are no longer numbers, or a process that prepares crops
                died; the last checkpoint stays.
            InputError: an image of the validation set cannot be read.
            OutputError: the folder cannot be written to, or the disk is full.
        """
        options = self.options
        if self.device.type == "cpu":
            _keep_freed_memory()
        loader = DataLoader(
            self.task.dataset,
            batch_sampler=_Order(self.samples, options.batch, options.seed, self.step),
            num_workers=options.workers,
            prefetch_factor=4 if options.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
        )
        try:
            self._train(iter(loader), report)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # PyTorch says so in the middle of whatever is done then, unless the connection breaks first.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise self._lost(
                "a process that prepares crops died", "add --workers 0 if memory ran out"
            ) from None
        # Also where a run goes on that was killed during this.
        self._validate()
        self.save(self.checkpoint)
        return options.out / _BEST

    def _train(self, batches: Iterator[dict[str, Tensor]], report: Callable[[Progress], None]) -> None:
        options = self.options
        last_look = time.monotonic()
        started = last_look - self.seconds
        saved = self.seconds
        losses: list[Tensor] = []
        self.model.train()
        if options.freeze_stem:
            # Its statistics stay, too.
            self.model.get_submodule("stem").eval()
        while self.done < 1:
            if not losses and self._validation_is_due:
                # The checkpoint is of this very step: a run that is killed here begins here again.
                self._validate()
                self.seconds = time.monotonic() - started
                self.save(self.checkpoint)
                saved, last_look = self.seconds, time.monotonic()
            stable = self.done < 1 - options.decay
            losses.append(self._step(next(batches)))
            self.seconds = time.monotonic() - started
            if len(losses) == _LOOK_STEPS or self.done >= 1:
                loss = float(torch.stack(losses).mean())
                if not math.isfinite(loss):
                    raise self._lost(f"the loss is {loss}")
                rate = len(losses) * self.batch / (time.monotonic() - last_look)
                losses.clear()
                left = self.seconds / max(self.done, 1e-9) * (1 - self.done)
                report(Progress(self.step, self.done, loss, rate, left, self.scores))
                self._log(f"{loss:.5f}", f"{rate:.1f}", "")
                is_late = self.seconds - saved > options.checkpoint_minutes * 60
                # Before a validation too, which may fail.
                if is_late or self._validation_is_due or self.done >= 1:
                    self.save(self.checkpoint)
                    saved = self.seconds
                last_look = time.monotonic()
            if stable and self.done >= 1 - options.decay:
                self.save(options.out / "stable.pt")

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        options, done = self.options, self.done
        factor = min(1.0, (self.step + 1) / max(options.warmup_steps, 1))
        if options.decay > 0:
            factor *= min(1.0, (1 - done) / options.decay)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.task.loss(self.model, batch)
        torch.autograd.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        # Early weights are poor: begin with a short memory (as in Tarvainen and Valpola 2017).
        keep = min(self.options.ema, (1 + self.step) / (10 + self.step))
        ours, theirs = self.ema.state_dict(), self.model.state_dict()
        floating = [key for key, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[key] for key in floating], [theirs[key] for key in floating], 1 - keep)

    def _lost(self, what: str, rescue: str = "lower --lr or look for broken annotations") -> TrainingError:
        if self.checkpoint.exists():
            rescue = f"{self.checkpoint} holds the last good state: --resume, and {rescue}"
        return TrainingError(f"{what} at step {self.step}; {rescue}")

    def _validate(self) -> None:
        self.validated = self.step, self.seconds
        self.scores = self.task.validate(copy.deepcopy(self.ema), self.device, self.half)
        name, score = next(iter(self.scores.items()))
        if not math.isfinite(score):
            raise self._lost(f"the validation's {name} is {score}")
        if score > self.best:
            self.best = score
            card = self.task.card()
            effort = {"hours": round(self.seconds / 3600, 2), "samples": self.step * self.batch}
            card = replace(card, training={**card.training, **effort})
            save_weights(self.ema.state_dict(), card, self.options.out / _BEST)
        self._log("", "", f"{score:.3f}")
        draw_curves(self.log_file, name, self.options.out / "curves.png")

    def save(self, path: Path) -> None:
        """Writes all that a resumed run needs, whole or not at all.

        Raises:
            TrainingError: the weights are not finite; the file that is there stays.
            OutputError: the folder cannot be written to, or the disk is full.
        """
        # The average has seen every step, and never forgets one that was not a number.
        if not all(bool(v.isfinite().all()) for v in self.ema.state_dict().values()):
            raise self._lost("the weights are not finite")
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "random": torch.get_rng_state(),
            "validated": self.validated,
            "same": self._same,
        }
        # PyTorch's own writing hides why a file cannot be written.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with atomic_path(path, overwrite=True) as partial, output_errors(path), partial.open("wb") as file:
            file.write(buffer.getbuffer())

    def _restore(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            theirs = state["same"]
            others = [f"{key} {theirs[key]}" for key, value in self._same.items() if theirs[key] != value]
            if others:
                raise TrainingError(
                    f"{self.checkpoint} was trained with {', '.join(others)}: resume with the same, or begin "
                    f"another run with --init {self.options.out / _BEST}"
                )
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds, self.best = int(state["step"]), state["seconds"], state["best"]
            step, seconds = state["validated"]
            self.validated = int(step), float(seconds)
            torch.set_rng_state(state["random"].cpu())
        except (OSError, *_NOT_A_CHECKPOINT) as error:
            why = str(error) or type(error).__name__
            raise TrainingError(f"{self.checkpoint}: not a checkpoint of this run ({why})") from error

    def _log(self, loss: str, rate: str, score: str) -> None:
        row = (self.step, self.step * self.batch, f"{self.seconds:.1f}", loss, rate, score)
        with output_errors(self.log_file), self.log_file.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def _cut_log(self) -> None:
        """Begins the log, or drops what was logged after the checkpoint: it is going to happen again."""
        rows: list[list[str]] = []
        if self.options.resume and self.log_file.exists():
            with output_errors(self.log_file), self.log_file.open(newline="", errors="replace") as file:
                rows = list(csv.reader(file))[1:]
        # A validation may have been logged that the checkpoint knows nothing of.
        kept = [
            row
            for row in rows
            if _is_logged(row) and int(row[0]) <= (self.validated[0] if row[-1] else self.step)
        ]
        with (
            atomic_path(self.log_file, overwrite=True) as partial,
            output_errors(self.log_file),
            partial.open("w", newline="") as file,
        ):
            csv.writer(file).writerows([_LOG_COLUMNS, *kept])


def _is_logged(row: list[str]) -> bool:
    # A killed run may leave half a row.
    with suppress(ValueError):
        return (
            len(row) == len(_LOG_COLUMNS)
            and int(row[0]) >= 0
            and all(float(cell or 0) < math.inf for cell in row)
        )
    return False


def draw_curves(log: Path, score_name: str, image: Path) -> None:
    """Draws the loss (smoothed, on a logarithmic scale) and the validation score over samples.

    Args:
        log: ``log.csv`` of a run.
        score_name: what the score is called.
        image: the PNG file to write.

    Raises:
        OutputError: the image cannot be written.
    """
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(10, 4), layout="constrained")
    titles = {"loss": "loss", "score": score_name}
    for axes, (column, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        curve = np.array([(float(row["samples"]), float(row[column])) for row in rows if row[column]])
        samples, values = curve.reshape(-1, 2).T
        if column == "loss":
            axes.plot(samples, values, color="tab:blue", alpha=0.25)
            axes.plot(samples, _smooth(values), color="tab:blue")
            axes.set_yscale("log")
        else:
            axes.plot(samples, values, color="tab:orange", marker="o")
        axes.set_xlabel("samples")
        axes.set_title(title)
        axes.grid(alpha=0.3, which="both")
    with atomic_path(image, overwrite=True) as partial, output_errors(image):
        figure.savefig(partial, format="png")


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a fiftieth of the curve to either side, less at its ends."""
    reach = len(values) // 50
    sums = np.concatenate([[0.0], values.cumsum()])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))
