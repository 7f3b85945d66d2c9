"""Decoders trained from nothing on real text: how low their loss gets, and what they write.

    python benchmarks/language_models.py                            both, seed 0
    python benchmarks/language_models.py tinyshakespeare --seeds 0 1 2
    python benchmarks/language_models.py tang_poems --output benchmarks/results/language_models.json

Prints one JSON object a run: sizes, steps, seconds, loss on the validation text, samples. Data:
$TF_INFER_SHARED/data, else ../shared/data beside the project.

tinyshakespeare: the sizes and steps of nanoGPT's CPU recipe (4 layers, 4 heads, width 128, blocks
of 64, 12 of them a step, 2,000 steps), whose README tells a validation loss of 1.88 nats a
character. One id is one byte, and the text is ASCII, so a byte is a character. The whole validation
text is asked for once, in rows as long as those of training; the weights are the last ones. The
recipe's own peak rate is 1e-3; ours is 3e-3 and was set before the first run.

tang_poems: Chinese poems of at most 96 characters, "title：poem", one id a character (characters
seen fewer than five times are spelled in bytes). The poems written for validation titles are judged
by their form: what share is valid UTF-8 and Chinese, what share of their clauses has five or seven
characters, and what share stands in a training poem word for word.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tf_infer.config import (
    BytesConfig,
    CausalLMConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.text.learning import SPACE, SPECIAL_IDS, learn_sentencepiece
from tf_infer.train.data import Example, read
from tf_infer.train.loop import History, evaluate, fit
from tf_infer.train.objectives import NextId
from tf_infer.verify.predictors import GraphPredictor

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TF_INFER_SHARED", ROOT / ".." / "shared")) / "data"
NANOGPT_NATS = 1.88

SHAKESPEARE = CausalLMConfig(
    name="tinyshakespeare", codec=BytesConfig(), capacity=64,
    # A row of 65 ids asks for 64.
    network=SmallTransformerConfig(width=128, layers=4, heads=4, hidden=512, dropout=0.0,
                                   max_positions=65),
    packing=PackingConfig(max_tokens=32, start=False, end=False, truncation="left"),
    grid=ShapeGrid(rows=(1, 8), tokens=(32,)))
SHAKESPEARE_TRAINING = TrainConfig(
    epochs=1, epoch_steps=2000, batch_rows=12, block_tokens=65, learning_rate=3e-3,
    warmup_fraction=0.05, decay="cosine", weight_decay=0.1, validation_fraction=0.0)

POEM_CHARS, LEAST_SEEN = 96, 5
POEM_TOKENS = 112  # a seldom character is spelled in three or four ids
POEMS = CausalLMConfig(
    name="tang_poems", codec=SentencePieceConfig(), capacity=80,
    network=SmallTransformerConfig(width=128, layers=3, heads=4, hidden=512, dropout=0.0,
                                   max_positions=POEM_TOKENS),
    packing=PackingConfig(max_tokens=32, start=False, end=False, truncation="left"),
    grid=ShapeGrid(rows=(1, 8, 64), tokens=(32,)))
POEM_TRAINING = TrainConfig(
    epochs=5, batch_rows=32, block_tokens=POEM_TOKENS, learning_rate=3e-3, decay="cosine",
    weight_decay=0.1, patience=None)
TITLES = 64
CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ebef，。？！ ]*")


def shakespeare(seed: int) -> dict[str, Any]:
    """Train on plays, byte by byte."""
    text = read(DATA / "tinyshakespeare" / "train.txt.gz")[0].text
    validation = read(DATA / "tinyshakespeare" / "val.txt")[0].text
    task = build(SHAKESPEARE, seed=seed)
    training = replace(SHAKESPEARE_TRAINING, seed=seed)
    history, seconds = timed_fit(task, [Example(text)], training)
    began = time.perf_counter()
    judged = evaluate(task, [Example(validation)], block_tokens=training.block_tokens,
                      progress=False)
    return {**about(task, history, seconds),
            "training_characters": len(text), "validation_characters": len(validation),
            "validation_nats_per_character": round(judged["loss"], 4),
            "nanogpt_nats_per_character": NANOGPT_NATS,
            "evaluation_seconds": round(time.perf_counter() - began, 1),
            "samples": write(task, ["ROMEO:\n", "First Citizen:\n", "To be, or not", "My lord, "],
                             temperature=0.8)}


def poems(seed: int) -> dict[str, Any]:
    """Train on Tang poems, character by character."""
    training, validation = (short_poems(name) for name in ("train.tsv.gz", "val.tsv"))
    with tempfile.TemporaryDirectory() as folder:
        learn_characters(training, Path(folder))
        task = build(POEMS, tokenizer_dir=Path(folder), seed=seed)
    config = replace(POEM_TRAINING, seed=seed)
    history, seconds = timed_fit(task, documents(training), config,
                                 validation=documents(validation))
    characters = sum(len(title) + 1 + len(poem) for title, poem in validation)
    asked = NextId(task, config).weights(NextId(task, config).rows(
        documents(validation), training=False, ticker=lambda items, what: items)).sum()
    loss = history.epochs[history.best_epoch - 1]["validation"]["loss"]
    titles = list(dict.fromkeys(title for title, _ in validation))[:TITLES]
    written = write(task, [f"{title}：" for title in titles], temperature=0.8, top_p=0.95)
    return {**about(task, history, seconds), "training_poems": len(training),
            "validation_poems": len(validation), "vocabulary": task.codec.vocab_size,
            "best_epoch": history.best_epoch,
            "validation_nats_per_id": round(loss, 4),
            "validation_nats_per_character": round(float(loss * asked / characters), 4),
            "nats_of_single_characters": round(single_characters(training, validation), 4),
            **form([text for _, text in written], training), "samples": written[:8]}


def timed_fit(task: Task, examples: Sequence[Example], config: TrainConfig,
              validation: Sequence[Example] | None = None) -> tuple[History, float]:
    """Train; return what it gave and how many seconds it took."""
    began = time.perf_counter()
    history = fit(task, examples, config, validation=validation, progress=False)
    return history, time.perf_counter() - began


def about(task: Task, history: History, seconds: float) -> dict[str, Any]:
    """Say what was trained."""
    network = task.config.network
    return {"layers": network.layers, "heads": network.heads, "width": network.width,
            "weights": sum(variable.shape.num_elements() for variable in task.network.weights),
            "epochs": list(history.epochs), "fit_seconds": round(seconds, 1)}


def write(task: Task, prompts: list[str], *, temperature: float, top_p: float = 1.0
          ) -> list[tuple[str, str]]:
    """Return prompts and what the decoder makes of them, each with a seed of its own."""
    signatures = task.signatures()
    inputs = {one.name: np.full(len(prompts), one.default, object if one.dtype == "string" else
                                one.dtype) for one in signatures["generate"].spec.inputs[1:]}
    inputs |= {"prompt": np.array([prompt.encode() for prompt in prompts], object),
               "temperature": np.full(len(prompts), temperature, np.float32),
               "top_p": np.full(len(prompts), top_p, np.float32),
               "max_new_tokens": np.full(len(prompts), task.config.capacity, np.int32),
               "seed": np.arange(len(prompts))}
    texts = GraphPredictor(signatures)("generate", inputs)["text"]
    return [(prompt, text.decode("utf-8", "replace")) for prompt, text in zip(prompts, texts)]


# ---------------------------------------------------------------------------- poems


def short_poems(name: str) -> list[tuple[str, str]]:
    """Return title and text of every poem that is short enough."""
    data = (DATA / "tang_poems" / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line]
    return [(title, text) for title, _, text in rows if len(title) + len(text) <= POEM_CHARS]


def documents(rows: Sequence[tuple[str, str]]) -> list[Example]:
    """Return poems as training reads them."""
    return [Example(f"{title}：{text}") for title, text in rows]


def learn_characters(rows: Sequence[tuple[str, str]], folder: Path) -> None:
    """Write a tokenizer with a piece for every character that is seen often enough."""
    texts = [example.text for example in documents(rows)]
    seen = Counter("".join(texts))
    seldom = {ord(char): None for char, count in seen.items() if count < LEAST_SEEN}
    kept = [text.translate(seldom) for text in texts]
    learn_sentencepiece(kept, folder, vocab_size=SPECIAL_IDS + len({*"".join(kept), *SPACE}))


def single_characters(training: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]]
                      ) -> float:
    """Return the loss of guessing by how often each character comes, nats a character."""
    seen = Counter("".join(example.text for example in documents(training)))
    text = "".join(example.text for example in documents(validation))
    total = sum(seen.values()) + len(seen) + 1  # everything counts one more; unseen count one
    return float(-np.mean([np.log((seen[char] + 1) / total) for char in text]))


def form(written: Sequence[str], training: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Judge poems by what can be counted."""
    def clauses(text: str) -> list[str]:
        return [clause for clause in re.split("[，。？！]", text) if clause]

    known = {clause for _, text in training for clause in clauses(text)}
    parts = [clauses(text) for text in written]
    every = [clause for poem in parts for clause in poem]
    return {
        "written": len(written),
        "valid_utf8": share("�" not in text for text in written),
        "all_chinese": share(CHINESE.fullmatch(text) is not None for text in written),
        "ended_by_themselves": share(text.endswith("。") for text in written),
        "clauses_of_5_or_7": share(len(clause) in (5, 7) for clause in every),
        "poems_of_one_metre": share(len({len(clause) for clause in poem}) == 1 for poem in parts),
        "clauses_from_training": share(clause in known for clause in every)}


def share(facts: Iterator[bool]) -> float:
    """Return how many are true, 0 to 1."""
    return round(float(np.mean(list(facts))), 3)


# ---------------------------------------------------------------------------- command


def keep(result: dict[str, Any], path: Path) -> None:
    """Write a run into the file of all runs, in place of the same experiment and seed."""
    def name(run: dict[str, Any]) -> tuple[str, int]:
        return run["experiment"], run["seed"]

    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    runs = sorted([run for run in before if name(run) != name(result)] + [result], key=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
                    + "\n]\n", encoding="utf-8")


def main() -> None:
    """Print one line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = {"tinyshakespeare": shakespeare, "tang_poems": poems}
    parser.add_argument("names", nargs="*", default=list(runs), help=f"of {list(runs)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="also write the runs to this file; others in it stay")
    arguments = parser.parse_args()
    # A script's folder comes first on the path, and benchmarks/tokenizers.py is not the package
    # that keras_hub imports.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT / "benchmarks"]
    if not DATA.is_dir():
        parser.exit(1, f"{DATA}: no such folder; set TF_INFER_SHARED to the one that holds data/\n")
    for name in arguments.names:
        for seed in arguments.seeds:
            result = {"experiment": name, "seed": seed, **runs[name](seed)}
            print(json.dumps(result, ensure_ascii=False), flush=True)
            if arguments.output:
                keep(result, arguments.output)


if __name__ == "__main__":
    main()
