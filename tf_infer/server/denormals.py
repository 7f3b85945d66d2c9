"""flushed: numbers too small for full precision count as zero in this thread, for a while.

TensorFlow computes so in all threads of its pools. A run that the asking thread does itself, or a
part of it, would give other answers for such numbers than the same run in a pool: 2e-40 for
1e-40 * 2, where there it is 0. C's library can set a thread's mode by its environment of floating
point; where we do not know how that looks, nothing is changed.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# machine -> size of fenv_t in glibc, where its control word is, and the bits that flush
_FORMS = {"x86_64": (32, 28, 0x8040), "aarch64": (8, 0, 1 << 24)}


def _library() -> Any:
    """Return glibc's functions, called without giving the interpreter lock away; None elsewhere."""
    if sys.platform != "linux" or platform.machine() not in _FORMS:
        return None
    try:
        found = ctypes.PyDLL("libm.so.6")
        return found if hasattr(found, "fegetenv") and hasattr(found, "fesetenv") else None
    except OSError:
        return None


_LIBRARY = _library()
KNOWN = _LIBRARY is not None
_SIZE, _PLACE, _BITS = _FORMS.get(platform.machine(), (0, 0, 0))
_WORD = struct.Struct("=I")


class _Thread(threading.local):
    """What a thread's environment is, and what it is to be within; found once, since it stays."""

    def __init__(self) -> None:
        self.before = ctypes.create_string_buffer(_SIZE)
        _LIBRARY.fegetenv(self.before)
        self.within = ctypes.create_string_buffer(self.before.raw, _SIZE)
        word, = _WORD.unpack_from(self.within, _PLACE)
        _WORD.pack_into(self.within, _PLACE, word | _BITS)


class _Flushed(AbstractContextManager[None]):
    """See `flushed`."""

    def __init__(self) -> None:
        self._thread = _Thread() if KNOWN else None

    def __enter__(self) -> None:
        if self._thread is not None:
            _LIBRARY.fesetenv(self._thread.within)

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            _LIBRARY.fesetenv(self._thread.before)


_FLUSHED, _AS_EVER = _Flushed(), nullcontext()


def flushed(*, wanted: bool = True) -> AbstractContextManager[None]:
    """Let denormal numbers be zero in this thread until the end of the context; not to be nested.

    Args:
        wanted: False changes nothing.

    Cost: a microsecond.
    """
    return _FLUSHED if wanted else _AS_EVER
