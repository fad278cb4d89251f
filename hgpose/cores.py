"""The processor's cores, which the stages of a pipeline share."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

#: How much a thread beside the networks is put back where cores are short (as by ``nice``).
_NICE = 5


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def go_second() -> None:
    """Puts the calling thread behind the one that runs the networks, which sets the pace.

    What the thread waits for it waits for anyway. Threads of libraries that it starts go second, too.
    """
    # Elsewhere priorities belong to processes.
    if sys.platform == "linux":
        with suppress(OSError):
            me = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + _NICE)
