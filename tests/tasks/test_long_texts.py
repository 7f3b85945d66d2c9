"""Of a text longer than a row can reach only that part is encoded, and the answer is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tensorflow as tf

from tests.tasks import small
from tf_infer.config import TaskConfig
from tf_infer.tasks import options
from tf_infer.tasks.build import build
from tf_infer.text import packing

MOST = 40  # bytes that a row reaches here, in place of a mebibyte
TEXTS = tf.constant(["a few words", "0123456789" * 9, "", "中" * 60])


class Watched:
    """A codec that notes how long the texts were that it encoded."""

    def __init__(self, codec: Any) -> None:
        self._codec, self.longest = codec, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Any:
        self.longest = max(self.longest, *map(len, texts.numpy()))
        return self._codec.encode(texts, offsets=offsets)


def dense(task: Any) -> Mapping[str, tf.Tensor]:
    return task.preprocess(text=TEXTS)


def pairs(task: Any) -> Mapping[str, tf.Tensor]:
    return task.preprocess(text=TEXTS, text_pair=tf.reverse(TEXTS, [0]))


def prompts(task: Any) -> Mapping[str, tf.Tensor]:
    given = options.defaults_for(tf.size(TEXTS), task.config)
    return task.preprocess(prompt=TEXTS, **{name: given[name] for name in options.PLAIN})


def encoded(task: Any) -> Mapping[str, tf.Tensor]:
    return task.signatures()["encode"].function(text=TEXTS)


def joined(task: Any) -> Mapping[str, tf.Tensor]:
    batch, counted, length = task.joined(TEXTS, tf.constant(["", "!", "more", "字"]))
    return {**batch._asdict(), "counted": counted, "length": length}


@pytest.mark.parametrize(("config", "ask"), [
    (small.CLASSIFIER, dense), (small.CLASSIFIER, encoded), (small.MULTI_LABEL_PAIR, pairs),
    (small.DECODER, prompts), (small.DECODER, encoded), (small.DECODER, joined)])
def test_no_more_is_encoded_than_a_row_reaches_and_the_row_is_the_same(
        monkeypatch: pytest.MonkeyPatch, config: TaskConfig,
        ask: Callable[[Any], Mapping[str, tf.Tensor]]) -> None:
    built = build(config)
    codec = Watched(built.codec)
    task = type(built)(built.config, codec, built.network)
    wanted = ask(task)
    assert codec.longest >= 180
    codec.longest = 0
    monkeypatch.setattr(packing, "LEAST_REACH", MOST)
    monkeypatch.setattr(packing, "REACH_OF_A_TOKEN", 1)
    found = ask(task)
    assert codec.longest == MOST
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        tf.debugging.assert_equal(found[name], tensor, message=name)


@pytest.mark.parametrize(("option", "told"), [
    ("forced_prefix", "forced_prefix: expected at most"), ("banned", "banned: expected words of")])
def test_a_prefix_or_a_banned_word_that_is_too_long_is_refused_and_not_encoded_whole(
        monkeypatch: pytest.MonkeyPatch, option: str, told: str) -> None:
    built = build(small.DECODER)
    codec = Watched(built.codec)
    task = type(built)(built.config, codec, built.network)
    monkeypatch.setattr(packing, "LEAST_REACH", MOST)
    monkeypatch.setattr(packing, "REACH_OF_A_TOKEN", 1)
    given = {**options.defaults_for(1, task.config), option: tf.constant(["ab" * 2_000])}
    with pytest.raises(tf.errors.InvalidArgumentError, match=told):
        task.preprocess(prompt=tf.constant(["a"]), **given)
    assert codec.longest == max(MOST, task.config.capacity)
