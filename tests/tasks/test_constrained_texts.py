"""Untrained decoders over real vocabularies: every text is what its constraint asks for."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks.suite import as_arrays, option_rows
from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    CausalLMConfig,
    CodecConfig,
    GenerationDefaults,
    JsonSchemaConfig,
    PackingConfig,
    RegexConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.tasks.build import build
from tf_infer.text.learning import learn_sentencepiece

pytestmark = pytest.mark.whole

jsonschema = pytest.importorskip("jsonschema", reason="needs pip install jsonschema")
pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
CAPACITY, ROWS = 120, 50
WORDS = ["order", "count", "naïve", "北京", "🙂", "the", "a", "true", "\n", "{\"", "12", "\\"]


def random_schema(random: np.random.Generator, depth: int = 2) -> dict[str, Any]:
    """Return a schema whose texts are short enough to come to their end."""
    kind = random.integers(0, 9 if depth else 6)
    if kind == 0:
        return {"type": "integer", "minimum": int(random.integers(-99, 1)),
                "maximum": int(random.integers(1, 9_999))}
    if kind == 1:
        return {"type": "string", "maxLength": int(random.integers(0, 4))}
    if kind == 2:
        return {"enum": [random.choice(WORDS), int(random.integers(0, 99)), None]}
    if kind == 3:
        return {"type": ["boolean", "null"]}
    if kind == 4:
        return {"type": "string", "pattern": f"^[a-e]{{1,{random.integers(1, 5)}}}x?$"}
    if kind == 5:
        return {"type": "string", "format": str(random.choice(["date", "ipv4"]))}
    if kind == 6:
        return {"type": "array", "items": random_schema(random, depth - 1),
                "minItems": int(random.integers(0, 2)), "maxItems": 2}
    if kind == 7:
        return {"anyOf": [random_schema(random, depth - 1), {"type": "null"}]}
    names = random.choice(["id", "n", "naïve \"q\"", "b"], size=2, replace=False).tolist()
    return {"type": "object", "properties": {n: random_schema(random, depth - 1) for n in names},
            "required": names[:int(random.integers(0, 3))], "additionalProperties": False}


def random_prompt(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(0, 9)))


def own_vocabulary(folder: Path) -> CodecConfig:
    """Learn a SentencePiece vocabulary with byte pieces."""
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, size=9)) for i in range(300)]
    learn_sentencepiece(texts, folder, vocab_size=400)
    return SentencePieceConfig()


def gpt2(folder: Path) -> CodecConfig:
    source = SHARED / "weights" / "tokenizers" / "gpt2"
    if not source.is_dir():
        pytest.skip(f"no {source}: set TF_INFER_SHARED to the folder with weights and data")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder / name)
    return BytePairConfig(added_tokens=(AddedToken(text="<|endoftext|>", id=50256),))


def stories260k(folder: Path) -> CodecConfig:
    source = SHARED / "weights" / "stories260K" / "tok512_rebuilt.model"
    if not source.is_file():
        pytest.skip(f"no {source}: set TF_INFER_SHARED to the folder with weights and data")
    shutil.copy(source, folder / "tokenizer.model")
    return SentencePieceConfig()


def check_texts(codec: CodecConfig, folder: Path, *, schemas: int, prompts: int, seed: int) -> None:
    """Let an untrained decoder answer random prompts under random constraints."""
    random = np.random.default_rng(seed)
    named: dict[str, Any] = {f"schema {i}": JsonSchemaConfig(schema=random_schema(random))
                             for i in range(schemas)}
    named |= {"words": RegexConfig(pattern=r"\w{1,6}(, \w{1,6}){0,3}[.!?]"),
              "any": RegexConfig(pattern=r"(?s).{0,12}")}
    packing = PackingConfig(max_tokens=32, start=False, end=False, truncation="left")
    task = build(CausalLMConfig(
        codec=codec, packing=packing, grid=ShapeGrid(rows=(ROWS,), tokens=(32,)),
        network=SmallTransformerConfig(width=8, layers=1, heads=1, hidden=8, max_positions=160),
        capacity=CAPACITY, defaults=GenerationDefaults(max_new_tokens=CAPACITY), top_logprobs=0,
        constraints=named), tokenizer_dir=folder, seed=seed)
    signature = task.signatures()["generate"]
    graph = tf.function(lambda **inputs: signature.function(**inputs), autograph=False
                        ).get_concrete_function(**signature.input_specs())
    ended, heard = 0, set()
    for begin in range(0, prompts, ROWS):
        names = [str(name) for name in random.choice(list(named), size=ROWS)]
        texts = [random_prompt(random) for _ in names]
        found = as_arrays(graph(prompt=tf.constant(texts), **option_rows(task, "generate", ROWS, {
            "constraint": names, "temperature": random.choice([0.0, 0.7, 1.0, 3.0], size=ROWS),
            "top_p": random.choice([1.0, 0.9], size=ROWS), "seed": begin + np.arange(ROWS)})))
        for name, text, reason in zip(names, found["text"], found["finish_reason"]):
            assert reason in (b"stop", b"length", b"incomplete")
            if reason != b"incomplete":
                check_text(named[name], text.decode())
                ended += 1
                heard.add(text)
    assert ended > 0.97 * prompts  # a few strings of byte pieces reach the limit
    assert len(heard) > prompts // 4


def check_text(constraint: Any, text: str) -> None:
    if isinstance(constraint, RegexConfig):
        assert re.fullmatch(constraint.pattern, text)
    else:
        jsonschema.Draft202012Validator(constraint.schema).validate(json.loads(text))


def test_an_untrained_model_says_nothing_but_what_it_must(tmp_path: Path) -> None:
    check_texts(own_vocabulary(tmp_path), tmp_path, schemas=6, prompts=ROWS, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("vocabulary", [own_vocabulary, stories260k, gpt2])
def test_a_thousand_random_prompts_and_schemas(
        vocabulary: Callable[[Path], CodecConfig], tmp_path: Path) -> None:
    check_texts(vocabulary(tmp_path), tmp_path, schemas=40, prompts=1_000, seed=2)


def test_the_schemas_of_this_test_are_of_many_kinds() -> None:
    random = np.random.default_rng(0)
    made = [json.dumps(random_schema(random)) for _ in range(60)]
    for word in ("properties", "items", "anyOf", "enum", "pattern", "format", "integer"):
        assert any(word in schema for schema in made)
