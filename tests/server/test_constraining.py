"""Constraints of a version: which ids end its texts, whatever its codec tells of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tf_infer.server.constraining import Constraining
from tf_infer.server.fake_decoder import END, TOKENS, FakeDecoder

pytest.importorskip("outlines_core", reason="needs the extra `constraints`")


@pytest.mark.parametrize("vanishing", [TOKENS.vanishing, frozenset()], ids=["vanishing", "silent"])
def test_the_ids_that_end_a_text_are_found_among_those_that_show_nothing(
        vanishing: frozenset[int]) -> None:
    decoder = FakeDecoder()
    assert decoder.manifest is not None
    # A codec whose first token is as any other, as one of bytes, has no vanishing ids.
    kept = Constraining(decoder, decoder.manifest, replace(TOKENS, vanishing=vanishing))
    assert kept._end_ids(kept._spec(), len(TOKENS.tokens)) == (END,)
    assert kept.automaton("choices", "abc") is not None
