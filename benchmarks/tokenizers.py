"""Codecs of tf_infer.text against the libraries they equal: texts per second, one thread each.

Prints one JSON object. Each case is timed in alternating rounds; figures are medians over the
rounds, with the smallest and the largest; `ratio` is ours by theirs. Time is that of the process
(CPU seconds), which other programs on the machine disturb less; `wall` says the other one. A case
of unseen words takes other words in each round. Needs the extra `oracles`.

    python -m benchmarks.tokenizers [--rounds 7] [--only gpt2]

Real texts and models are read from the folder in TF_INFER_SHARED (default ../shared); without it
the texts are made up, and only the models of tests/golden are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sentencepiece
import tensorflow as tf
import tokenizers

from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    CodecConfig,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.text.build import build

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
GOLDEN = ROOT / "tests" / "golden" / "text"
BATCH = 512
Encode = Callable[[list[str]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """One tokenizer: our graph, the library's call, and what makes their ids comparable."""

    name: str
    ours: Callable[[tf.Tensor], tf.RaggedTensor]
    theirs: Encode
    ids: Callable[[Any], list[list[int]]]


def lines() -> list[str]:
    """Return short real texts (SST-2), or made-up ones."""
    path = SHARED / "data" / "sst2" / "train.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row["text"] for row in rows[:8 * BATCH]]
    return made_up(8 * BATCH, words=3_000)


def made_up(count: int, *, words: int | None, seed: int = 0) -> list[str]:
    """Return texts of 18 words, out of `words` different ones or all of them new."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 8)))

    known = [word() for _ in range(words or 0)]
    return [" ".join(draw.choice(known) if known else word() for _ in range(18))
            for _ in range(count)]


def codec(config: CodecConfig, folder: Path) -> Callable[[tf.Tensor], tf.RaggedTensor]:
    """Return the ids of a codec as a function of one signature."""
    built = build(config, folder)
    found = tf.function(lambda texts: built.encode(texts).ids,
                        input_signature=[tf.TensorSpec([None], tf.string)])
    return found  # type: ignore[no-any-return]


def hugging_face(name: str, tokenizer: tokenizers.Tokenizer, config: CodecConfig, folder: Path
                 ) -> Contest:
    return Contest(
        name=name, ours=codec(config, folder),
        theirs=lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
        ids=lambda found: [one.ids for one in found])


def wordpiece(folder: Path) -> Contest:
    tokens = folder.joinpath("vocab.txt").read_text(encoding="utf-8").splitlines()
    model = tokenizers.models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]",
                                        max_input_chars_per_word=100)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.add_special_tokens(special)
    added = tuple(AddedToken(text=text, id=tokens.index(text)) for text in special)
    return hugging_face("wordpiece", tokenizer, WordPieceConfig(added_tokens=added), folder)


def bytepair(folder: Path) -> Contest:
    end = "<|endoftext|>"
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([end])
    added = (AddedToken(text=end, id=tokenizer.token_to_id(end)),)
    return hugging_face("bytepair", tokenizer, BytePairConfig(added_tokens=added), folder)


def sentencepiece_model(name: str, path: Path) -> Contest:
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(path.read_bytes())
        ours = codec(SentencePieceConfig(), Path(folder))
    return Contest(name=name, ours=ours, ids=lambda found: found,
                   theirs=lambda texts: library.encode(texts, num_threads=1))


def contests() -> Iterator[Callable[[], Contest]]:
    """Yield what builds each contest, for the real models where they are."""
    weights = SHARED / "weights"
    real = weights.is_dir()
    files = weights / "tokenizers"
    yield lambda: wordpiece(files / "bert_uncased" if real else GOLDEN / "wordpiece")
    yield lambda: bytepair(files / "gpt2" if real else GOLDEN / "bytepair")
    yield lambda: sentencepiece_model(
        "unigram", files / "sp_onmt_wmtende" / "wmtende.model" if real
        else GOLDEN / "sentencepiece" / "unigram.model")
    yield lambda: sentencepiece_model(
        "sentencepiece_bpe", weights / "stories260K" / "tok512_rebuilt.model" if real
        else GOLDEN / "sentencepiece" / "bpe.model")


def cases(rounds: int) -> dict[str, list[list[str]]]:
    """Return for each case the batch of each round."""
    short = lines()
    batches = [short[i:i + BATCH] for i in range(0, len(short), BATCH)]
    long = [" ".join(short[i:i + 10]) for i in range(BATCH)]
    unseen = [made_up(BATCH, words=None, seed=1 + seed) for seed in range(rounds + 1)]
    tweet = [["@air thanks for the gr8 flight today, wifi didn't work but the crew was awesome!! "
              "#travel http://t.co/Ab3x"]]
    return {
        "short, known words, batch 512": [batches[0]] * (rounds + 1),
        "long, known words, batch 512": [long] * (rounds + 1),
        "short, unseen words, batch 512": unseen,
        "tweet, batch 1": tweet * (rounds + 1),
        "long, batch 1": [long[:1]] * (rounds + 1),
    }


def seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats


def summary(times: list[tuple[float, float]], rows: int) -> dict[str, float]:
    cpu = sorted(rows / time_s for time_s, _ in times)
    return {"texts_per_s": round(statistics.median(cpu)), "lowest": round(cpu[0]),
            "highest": round(cpu[-1]),
            "ms_per_call": round(statistics.median(t for t, _ in times) * 1000, 3),
            "wall_ms_per_call": round(statistics.median(t for _, t in times) * 1000, 3)}


def measure(contest: Contest, batches: list[list[str]]) -> dict[str, Any]:
    """Time both sides in alternating rounds; the first batch only warms them up."""
    repeats = 200 if len(batches[0]) == 1 else 1
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    different = 0
    for number, batch in enumerate(batches):
        texts = tf.constant(batch)
        their_time = seconds(lambda batch=batch: contest.theirs(batch), repeats)  # type: ignore[misc]
        our_time = seconds(lambda texts=texts: contest.ours(texts), repeats)  # type: ignore[misc]
        if number:
            ours.append(our_time)
            theirs.append(their_time)
        reference = contest.ids(contest.theirs(batch))
        different += sum(a != b for a, b in zip(contest.ours(texts).to_list(), reference))
    ratios = sorted(b[0] / a[0] for a, b in zip(ours, theirs))
    return {"ours": summary(ours, len(batches[0])), "theirs": summary(theirs, len(batches[0])),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
            "texts": sum(map(len, batches)), "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each case")
    parser.add_argument("--only", help="one tokenizer: wordpiece, bytepair, unigram, "
                                       "sentencepiece_bpe")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    results: dict[str, Any] = {}
    for make in contests():
        contest = make()
        if options.only in (None, contest.name):
            results[contest.name] = {name: measure(contest, batches)
                                     for name, batches in cases(options.rounds).items()}
    print(json.dumps({
        "machine": {"cores": os.cpu_count(), "system": platform.platform(),
                    "load": os.getloadavg()},
        "versions": {"tensorflow": tf.__version__, "tokenizers": tokenizers.__version__,
                     "sentencepiece": sentencepiece.__version__},
        "real_data": (SHARED / "weights").is_dir(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
