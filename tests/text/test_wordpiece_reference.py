"""WordPiece against the reference itself, on real vocabularies: run by hand, see the markers."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.text import hostile
from tests.text.codecs import encoder
from tf_infer.config import WordPieceConfig
from tf_infer.text import files, vocabulary
from tf_infer.text.wordpiece import WordPieceCodec

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
KINDS = ("uncased", "cased", "chinese")
POINTS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
BATCH = 2048
MOST_CELLS = 4_000_000  # rows x longest row of a batch: what its ids take when padded


def codec_of(kind: str) -> WordPieceCodec:
    folder = SHARED / "weights" / "tokenizers" / f"bert_{kind}"
    if not folder.exists():
        pytest.skip(f"no {folder}: set TF_INFER_SHARED to the folder with weights and data")
    config = files.read(folder)
    assert isinstance(config, WordPieceConfig)
    if kind == "cased":
        config = replace(config, lowercase=False, strip_accents=False)
    return WordPieceCodec(config, folder)


def oracle_of(codec: WordPieceCodec, kind: str) -> Any:
    pytest.importorskip("tokenizers")
    from scripts.make_wordpiece_golden import tokenizer
    path = SHARED / "weights" / "tokenizers" / f"bert_{kind}" / "vocab.txt"
    return tokenizer(path.read_text(encoding="utf-8").split("\n")[:-1],
                     {"lowercase": codec.config.lowercase})


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in strings(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in strings(item))


def shared_texts() -> list[str]:
    found: dict[str, None] = {}
    for path in sorted((SHARED / "data").rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        if path.name.removesuffix(".gz").endswith(".jsonl"):
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            lines = json.loads(text) if path.suffix == ".json" else text.split("\n")
        found.update(dict.fromkeys(strings(lines)))
    return list(found)


def texts_of(name: str) -> list[str]:
    if name == "hostile":
        return hostile.texts(20_000)
    if name == "shared":
        return shared_texts()
    return POINTS if name == "alone" else [f"ab{char}le un{char}" for char in POINTS]


def batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield all texts, the short ones first, in batches that fit into memory when padded."""
    batch: list[str] = []
    for text in sorted(texts, key=len):
        if len(batch) == BATCH or (len(batch) + 1) * len(text.encode()) > MOST_CELLS:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def differences(codec: WordPieceCodec, oracle: Any, texts: list[str]) -> tuple[int, int]:
    """Return how many texts have other ids, other byte offsets than the oracle's."""
    encode = encoder(codec)
    ids = offsets = 0
    for batch in batches(texts):
        tokens = encode(tf.constant(batch))
        rows = zip(batch, oracle.encode_batch(batch, add_special_tokens=False),
                   tokens.ids.to_list(), tokens.starts.to_list(), tokens.ends.to_list())
        for text, expected, found, starts, ends in rows:
            at = np.cumsum([0, *(len(char.encode()) for char in text)])
            spans = [(at[first], at[last]) for first, last in expected.offsets]
            ids += found != expected.ids
            offsets += list(zip(starts, ends)) != spans
    return ids, offsets


@pytest.mark.slow
@pytest.mark.oracles
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["hostile", "shared", "alone", "inside"])
def test_no_difference_from_tokenizers(kind: str, name: str) -> None:
    codec = codec_of(kind)
    assert differences(codec, oracle_of(codec, kind), texts_of(name)) == (0, 0)


@pytest.mark.oracles
@pytest.mark.parametrize("kind", KINDS)
def test_no_difference_from_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    codec = codec_of(kind)
    folder = SHARED / "weights" / "tokenizers" / f"bert_{kind}"
    theirs = transformers.BertTokenizer.from_pretrained(
        str(folder), do_lower_case=codec.config.lowercase)
    texts = hostile.texts(2000, seed=1, long_chars=0)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert encoder(codec, offsets=False)(tf.constant(texts)).ids.to_list() == expected
    # What they save is read as the same tokenizer, from tokenizer.json alone.
    theirs.save_pretrained(tmp_path)
    assert files.read(tmp_path) == codec.config
    (tmp_path / "ours").mkdir()
    files.copy(tmp_path, tmp_path / "ours", codec.config)
    ours = vocabulary.read(tmp_path / "ours" / "vocab.txt")
    lines = vocabulary.read(folder / "vocab.txt")
    # Their reader drops white space at the end of a line; no text gives such a token.
    assert [our == line or line.strip() != line for our, line in zip(ours, lines)] == (
        [True] * len(lines))


@pytest.mark.slow
def test_unseen_words_leave_no_trace_and_threads_do_not_disturb_each_other() -> None:
    codec = codec_of("uncased")
    encode = encoder(codec, offsets=False)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzé中", k=12)) for _ in range(200_000)]
    batches = [tf.constant(words[i:i + 1000]) for i in range(0, len(words), 1000)]
    expected = [encode(batch).ids for batch in batches[:50]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in batches:
        encode(batch)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 20_000, "no more than the allocator's own noise"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: encode(batch).ids, batches[:50] * 4))
    for number, ids in enumerate(found):
        assert ids.to_list() == expected[number % 50].to_list()
