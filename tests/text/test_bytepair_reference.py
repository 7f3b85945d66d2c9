"""Byte-level BPE against Hugging Face's tokenizers, on GPT-2's files and made-up merge tables."""

from __future__ import annotations

import os
import random
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.text import hostile
from tests.text.codecs import encoder
from tests.text.test_bytepair import random_table, write_table
from tests.text.test_wordpiece_reference import ROOT, differences, texts_of
from tf_infer.config import AddedToken, BytePairConfig
from tf_infer.text.bytepair import BytePairCodec
from tf_infer.text.merges import read_merges, read_vocabulary

SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
GPT2 = SHARED / "weights" / "tokenizers" / "gpt2"
END = AddedToken(text="<|endoftext|>", id=50256)
MORE_KB = 100_000  # the allocator's own noise; 200,000 words in a cache take more
CONFIGS = {
    "gpt2": BytePairConfig(added_tokens=(END,)),
    "prefix": BytePairConfig(added_tokens=(END,), add_prefix_space=True),
    "llama3": BytePairConfig(added_tokens=(END,), split="llama3", ignore_merges=True),
}


def codec_of(name: str) -> BytePairCodec:
    if not GPT2.exists():
        pytest.skip(f"no {GPT2}: set TF_INFER_SHARED to the folder with weights and data")
    return BytePairCodec(CONFIGS[name], GPT2)


def oracle_of(name: str) -> Any:
    pytest.importorskip("tokenizers")
    from scripts.make_bytepair_golden import tokenizer_of

    vocabulary = read_vocabulary(GPT2 / "vocab.json")
    config = CONFIGS[name]
    return tokenizer_of(vocabulary, read_merges(GPT2 / "merges.txt", vocabulary),
                        split=config.split, prefix=config.add_prefix_space,
                        ignore_merges=config.ignore_merges)


@pytest.mark.oracles
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_no_difference_on_hostile_texts(name: str) -> None:
    texts = hostile.texts(1_500, seed=3)
    assert differences(codec_of(name), oracle_of(name), texts) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.oracles
@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("texts", ["hostile", "shared", "alone", "inside"])
def test_no_difference_from_tokenizers(name: str, texts: str) -> None:
    codec: Any = codec_of(name)
    assert differences(codec, oracle_of(name), texts_of(texts)) == (0, 0)


@pytest.mark.oracles
def test_any_merge_table_gives_what_tokenizers_gives(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    draw = random.Random(11)
    for number in range(20):
        pairs = random_table(draw, ordered=number % 2 == 0)
        vocabulary = write_table(tmp_path, pairs)
        codec = BytePairCodec(BytePairConfig(end_token=None, split="none"), tmp_path)
        oracle = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
        words = ["".join(draw.choice("abc") for _ in range(draw.randint(1, 14)))
                 for _ in range(300)]
        expected = [found.ids for found in oracle.encode_batch(words)]
        assert codec.encode(tf.constant(words)).ids.to_list() == expected


@pytest.mark.slow
def test_unseen_words_leave_the_memory_as_it_was() -> None:
    codec = codec_of("gpt2")
    encode = encoder(codec, offsets=False)
    draw = random.Random(0)

    def feed(words: int) -> int:
        for _ in range(words // 2_000):
            batch = [" ".join(f"{draw.getrandbits(40):x}" for _ in range(20)) for _ in range(100)]
            encode(tf.constant(batch))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = feed(20_000)
    assert feed(200_000) - before < MORE_KB


@pytest.mark.slow
def test_parallel_calls_give_what_single_ones_give() -> None:
    codec = codec_of("gpt2")
    encode = encoder(codec, offsets=False)
    batches = [hostile.texts(100, seed=seed, long_chars=0) for seed in range(8)]
    alone = [encode(tf.constant(batch)).ids.to_list() for batch in batches]
    found: dict[int, Any] = {}

    def call(number: int) -> None:
        found[number] = [encode(tf.constant(batches[number])).ids.to_list() for _ in range(5)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == [alone[number]] * 5 for number in range(8))
