"""The command line: parse, build one options object, make one call into the package, print.

Whatever is slow to import is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from hgpose.cli import batch, convert, evaluate, process, tools, train, webcam, weights
from hgpose.errors import HgposeError, OptionsError, OutputError, notes, told


def _say(*lines: str) -> None:
    for line in lines:
        process.plain_console().print(process.printable(line), soft_wrap=True)


class _Commands(TyperGroup):
    """Errors a user can mend are one line and exit 1 (2 for wrong usage); Ctrl-C is exit 130."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except HgposeError as error:
            process.print_error(process.plain_console(), told(error))
            raise typer.Exit(2 if isinstance(error, OptionsError) else 1) from error
        except KeyboardInterrupt as interrupt:
            _say("stopped", *notes(interrupt))
            raise typer.Exit(130) from interrupt
        except SystemExit as end:
            _say(*notes(end))
            raise


class _Stdout(io.TextIOWrapper):
    """Standard output that cannot be written to is an error like that of any other file."""

    def write(self, text: str) -> int:
        """As of any text file, but for its errors."""
        with self._errors():
            return super().write(text)

    def flush(self) -> None:
        """As of any text file, but for its errors."""
        with self._errors():
            super().flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What waits in the buffer would be tried again at the end of the program.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                # Whoever reads a pipe and closes it has seen enough.
                raise SystemExit(1) from error
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write to standard output: {reason}; make room or send it elsewhere"
            ) from error


@contextmanager
def _stdout() -> Iterator[None]:
    """Puts :class:`_Stdout` in place of standard output, and sees to it that all that was printed is out."""
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper):
        # There is none, or it is no file.
        yield
        return
    own = _Stdout(before.buffer, before.encoding, before.errors, line_buffering=before.line_buffering)
    sys.stdout = own
    try:
        yield
    finally:
        sys.stdout = before
        try:
            own.flush()
        finally:
            own.detach()


app = typer.Typer(
    cls=_Commands,
    name="hgpose",
    help="Human pose from webcam, videos and image folders with a stacked hourglass network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("video")(process.video)
app.command("images")(process.images)
app.command("batch")(batch.batch)
app.command("webcam")(webcam.webcam)
app.command("convert")(convert.convert)
app.command("draw")(convert.draw)
app.command("schema")(convert.schema)
app.command("demo")(tools.demo)
app.command("doctor")(tools.doctor)
app.command("bench")(tools.bench)
app.add_typer(evaluate.eval_app, name="eval")
app.add_typer(train.train_app, name="train")
app.add_typer(weights.weights_app, name="weights")
app.command("export")(weights.export)


def main() -> None:
    """Entry point of ``hgpose``."""
    # Unwound as by Ctrl-C, so that a run that is told to end leaves no unfinished files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with _stdout():
            app()
    except HgposeError as error:
        # What no command has answered: help, and what waits in the buffer.
        process.print_error(process.plain_console(), str(error))
        sys.exit(1)
