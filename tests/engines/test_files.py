"""The folder of an engine, and an engine that cannot be made ready."""

from __future__ import annotations

import pytest

from tf_infer.engines import files


class Held:
    """What an engine holds, and whether it was freed."""

    freed = 0

    def close(self) -> None:
        self.freed += 1


def test_an_engine_is_freed_only_where_it_cannot_be_made_ready() -> None:
    good, bad = Held(), Held()
    with files.made_ready(good) as engine:
        assert engine is good
    with pytest.raises(KeyboardInterrupt), files.made_ready(bad):
        raise KeyboardInterrupt
    assert (good.freed, bad.freed) == (0, 1)
