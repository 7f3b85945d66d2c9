"""What a version held goes back to the system when it goes, and connections get descriptors.

TensorFlow's Python graph is a knot of references: only a collection frees it, and with it some
megabytes of C++. A collection looks at every object, 200 ms of them once TensorFlow is imported,
while nobody is answered. So a process of ours sets aside what will never go; then it takes 30 ms,
and next to nothing where a version left none of Python's objects (`loading.BareGraph`).
"""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
from contextlib import suppress

_settled = threading.Event()  # gc.get_freeze_count looks at every object: 40 ms


def settle() -> None:
    """Set aside all objects there are now: no collection looks at them again."""
    gc.collect()
    gc.freeze()
    _settled.set()


def give_back() -> None:
    """Free what a version has left behind, if this process has settled."""
    if _settled.is_set():
        gc.collect()
        with suppress(AttributeError, OSError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def allow_connections() -> None:
    """Let the process have as many descriptors as it may; every connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
