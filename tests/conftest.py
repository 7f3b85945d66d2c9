"""Every test leaves our logger as it found it, whatever the commands in it have set up."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logger_as_found() -> Iterator[None]:
    """Take away, and close, the handlers that a test put on the logger `tf_infer`."""
    found = logging.getLogger("tf_infer")
    handlers, level = list(found.handlers), found.level
    yield
    for handler in found.handlers:
        if handler not in handlers:
            handler.close()
    found.handlers[:] = handlers
    found.setLevel(level)
