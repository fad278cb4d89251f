"""Errors that a user can do something about; the command line prints their message and exits 1."""

from __future__ import annotations

from collections.abc import Sequence


def notes(error: BaseException) -> Sequence[str]:
    """What was added to an error on its way (PEP 678)."""
    return getattr(error, "__notes__", ())


def told(error: BaseException) -> str:
    """What an error says, with its notes."""
    return "; ".join([str(error), *notes(error)])


class HgposeError(Exception):
    """Base of all errors of this package. The message names the file and says what to do."""


class InputError(HgposeError):
    """An input (video, image, annotation file) is missing, unreadable or not what it should be."""


class OutputError(HgposeError):
    """A result cannot be written: the folder is not writable, the disk is full, a file is in the way."""


class WeightsError(HgposeError):
    """Weights are missing, damaged, or do not fit the network their card names."""


class OptionsError(HgposeError):
    """Options contradict each other or lie outside their range (exit code 2)."""


class TrainingError(HgposeError):
    """Training cannot go on: the loss is not a number, or a checkpoint does not fit the run."""
