"""Every test leaves our logger as it found it; none fails because the machine is slow."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from tf_infer.cli.backend import collect_seldom

# Examples and their making may take as long as they like: a busy machine is no fault of ours.
with contextlib.suppress(ImportError):  # where only the tests of a GPU run
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None,
                              suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Spend less time beside the tests themselves."""
    collect_seldom()
    # By number of tests, as pytest-xdist orders files, the dearest come last, on one worker alone.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


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
