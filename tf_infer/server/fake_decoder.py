"""A decoder without a network: what it says next is a hash of all it has read. Needs no TensorFlow.

Whoever reads another's cache, skips an id or reads one twice says something else, so that tests of
the slot engine see it. `FakeDecoder` is a servable with the signatures of an exported decoder,
`FakeStepEngine` the same language behind the contract of engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_infer.config import (
    BytePairConfig,
    CausalLMConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
)
from tf_infer.engines.contracts import Part
from tf_infer.errors import InvalidRequest
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server import quick_choice
from tf_infer.server.contracts import Arrays
from tf_infer.token_bytes import TokenBytes
from tf_infer.wire import serving_pb2

START, END = 1, 2
WORDS = (b"", b"", b"", *(bytes([letter]) for letter in b"abcdefghijklmnop "), b" the", b"<stop>",
         "é".encode(), b"\xc3", b"\xa9", b"\xe4", b"\xb8\xad")
VOCAB = len(WORDS)
POSITIONS, CAPACITY, PROMPT = 96, 48, 48
TOKENS = TokenBytes(tokens=WORDS, first=WORDS, vanishing=frozenset({0, START, END}))
NO_MASK = np.zeros(0, np.int32)
_MASK = (1 << 48) - 1
_EVERY = np.arange(VOCAB, dtype=np.uint64)

OPTIONS = (
    TensorSpec(name="max_new_tokens", dtype="int32", shape=(None,), default=CAPACITY),
    TensorSpec(name="min_new_tokens", dtype="int32", shape=(None,), default=0),
    TensorSpec(name="temperature", dtype="float32", shape=(None,), default=0.0),
    TensorSpec(name="seed", dtype="int64", shape=(None,), default=0),
    TensorSpec(name="draw", dtype="int32", shape=(None,), default=0),
    TensorSpec(name="logprobs", dtype="int32", shape=(None,), default=0),
    TensorSpec(name="stop_ids", dtype="string", shape=(None,), default=""),
    TensorSpec(name="stop", dtype="string", shape=(None,), default=""))
TOP = 5


def mixed(values: Any) -> Any:
    """Return uint64 scrambled (splitmix64), one by one."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def read_on(state: int, number: int) -> int:
    """Return the hash of what was read, with one more id: 48 bits."""
    return int(mixed(np.uint64((state * 31 + number + 1) & _MASK))) & _MASK


def logits_of(state: int) -> np.ndarray:
    """Return the logits behind what was read, [V] float32."""
    bits = mixed(mixed(np.uint64(state)) ^ _EVERY) >> np.uint64(40)
    logits: np.ndarray = bits.astype(np.float32) * np.float32(4.0 / 2**24)
    logits[[0, START]] = -50.0
    logits[END] -= 1.0
    return logits


class Chosen(NamedTuple):
    """One choice, as `choose` tells it."""

    token: int
    logprob: float
    is_end: bool
    top: tuple[tuple[int, float], ...]


def choose(logits: np.ndarray, options: Mapping[str, Any], produced: int,
           allowed: np.ndarray | None = None) -> Chosen:
    """Choose the next token of one row; [V] logits."""
    changed = logits.copy()
    text = options["stop_ids"]
    text = text.encode() if isinstance(text, str) else text
    ends = {END, *(int(number) for number in text.split(b"\x1f") if number)}
    if produced < int(options["min_new_tokens"]):
        changed[list(ends)] = quick_choice.BANNED
    how = quick_choice.Drawing(float(options["temperature"]), 0, 1.0, 0.0, int(options["seed"]),
                               int(options["draw"]))
    found = quick_choice.choose(changed, how, produced, NO_MASK if allowed is None else allowed)
    assert found is not None
    token = found.token
    log_probs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    best = np.argsort(-log_probs, kind="stable")[:TOP]
    return Chosen(token, float(log_probs[token]), token in ends,
                  tuple((int(one), float(log_probs[one])) for one in best))


def encoded(text: bytes) -> list[int]:
    """Return the ids of a prompt; bytes that no token has are dropped."""
    ids, place = [START], 0
    order = sorted(range(3, VOCAB), key=lambda number: -len(WORDS[number]))
    while place < len(text):
        found = next((number for number in order if text.startswith(WORDS[number], place)), None)
        if found is None:
            place += 1
        else:
            ids.append(found)
            place += len(WORDS[found])
    return ids[-PROMPT:]


def manifest() -> ModelManifest:
    """Return the manifest of a version that is a FakeDecoder."""
    def rows(name: str, dtype: str, *shape: int | None) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=(None, *shape))

    state = (rows("cache", "float32", 2, 1, POSITIONS, 1), rows("lengths", "int32"))
    chosen = OPTIONS[1:-1]
    answer = (rows("text", "string"), rows("ids", "int32", CAPACITY), rows("length", "int32"),
              rows("score", "float32"), rows("finish_reason", "string"))
    signatures = (
        SignatureSpec(name="generate", inputs=(rows("prompt", "string"), *OPTIONS),
                      outputs=answer),
        SignatureSpec(name="encode", inputs=(rows("text", "string"),),
                      outputs=(rows("ids", "int32", None), rows("mask", "int32", None))),
        SignatureSpec(name="decode", inputs=(rows("ids", "int32", None), rows("length", "int32")),
                      outputs=(rows("text", "string"),)),
        SignatureSpec(
            name="choose", inputs=(
                rows("logits", "float32", VOCAB), rows("ids", "int32", None),
                rows("prompt_length", "int32"), rows("length", "int32"), *chosen,
                rows("allowed", "int32", None), rows("state", "int32")),
            outputs=(rows("token", "int32"), rows("logprob", "float32"), rows("is_end", "bool"),
                     rows("state", "int32"), rows("top_ids", "int32", TOP),
                     rows("top_logprobs", "float32", TOP))),
        SignatureSpec(
            name="steps", inputs=(
                rows("ids", "int32", None), rows("id_count", "int32"), *state,
                rows("count", "int32"), *chosen, rows("produced", "int32"),
                rows("history", "int32", None), rows("history_length", "int32"),
                rows("allowed", "int32", None)),
            outputs=(rows("tokens", "int32", CAPACITY), rows("token_count", "int32"),
                     rows("finished", "bool"), rows("score", "float32"), *state,
                     rows("token_logprobs", "float32", CAPACITY),
                     rows("top_ids", "int32", CAPACITY, TOP),
                     rows("top_logprobs", "float32", CAPACITY, TOP))))
    grid = ShapeGrid(rows=(1, 4), tokens=(8, PROMPT))
    task = CausalLMConfig(
        codec=BytePairConfig(),  # one that repairs what is no character
        packing=PackingConfig(max_tokens=PROMPT, end=False, truncation="left"), grid=grid,
        capacity=CAPACITY, defaults=GenerationDefaults(max_new_tokens=CAPACITY))
    return ModelManifest(name="fake", version=1, task=task, signatures=signatures, grid=grid)


class FakeDecoder:
    """A servable; see the module.

    Args:
        before: called with the name of a signature before it runs; may raise, or wait.
        plain: its `decode` gives the bytes as they are, as the bytes codec does.

    Attributes:
        runs: how often each signature has run.
        limits: the time that the last run of each had.
    """

    def __init__(self, before: Callable[[str], None] | None = None, *, plain: bool = False) -> None:
        self.manifest: ModelManifest | None = manifest()
        self.signatures: Mapping[str, serving_pb2.SignatureDef] = {}
        self._before, self._plain = before or (lambda signature: None), plain
        self.runs: dict[str, int] = {}
        self.limits: dict[str, float | None] = {}
        self.closed = False

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Run one signature."""
        self.runs[signature] = self.runs.get(signature, 0) + 1
        self.limits[signature] = timeout_s
        self._before(signature)
        assert not self.closed
        out: Arrays = getattr(self, f"_{signature}")(**inputs)
        return {name: out[name] for name in outputs}

    def close(self) -> None:
        """Remember the end."""
        self.closed = True

    def _encode(self, text: np.ndarray) -> Arrays:
        rows = [encoded(one) for one in text]
        ids = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, :len(row)], mask[place, :len(row)] = row, 1
        return {"ids": ids, "mask": mask}

    def _decode(self, ids: np.ndarray, length: np.ndarray) -> Arrays:
        texts = [b"".join(WORDS[one] for one in row[:count]) for row, count in zip(ids, length)]
        if not self._plain:
            texts = [text.decode("utf-8", "replace").encode() for text in texts]
        return {"text": np.asarray(texts, object)}

    def _choose(self, logits: np.ndarray, ids: np.ndarray, prompt_length: np.ndarray,
                length: np.ndarray, allowed: np.ndarray, state: np.ndarray,
                **options: np.ndarray) -> Arrays:
        assert all(len(values) == len(logits) for values in (ids, allowed, *options.values()))
        _check(options)
        found = [choose(logits[row], _row(options, row), int(length[row] - prompt_length[row]),
                        allowed[row]) for row in range(len(logits))]
        return {"token": np.asarray([one.token for one in found], np.int32),
                "logprob": np.asarray([one.logprob for one in found], np.float32),
                "is_end": np.asarray([one.is_end for one in found]), "state": state,
                **_tops(found)}

    def _steps(self, ids: np.ndarray, id_count: np.ndarray, cache: np.ndarray, lengths: np.ndarray,
               count: np.ndarray, produced: np.ndarray, history: np.ndarray,
               history_length: np.ndarray, allowed: np.ndarray, **options: np.ndarray) -> Arrays:
        assert all(len(values) == len(ids) for values in (
            id_count, cache, lengths, count, produced, history, allowed, *options.values()))
        for row in np.flatnonzero(count).tolist():
            there = history[row, :history_length[row]]
            assert there[len(there) - id_count[row]:].tolist() == ids[row, :id_count[row]].tolist()
            assert history_length[row] == lengths[row] + id_count[row]
        assert ((count == 0) | (id_count > 0)).all()
        assert (lengths + id_count + count <= POSITIONS).all()
        _check(options)
        cache, lengths = cache.copy(), lengths.copy()
        rows = len(ids)
        out = {"tokens": np.zeros((rows, CAPACITY), np.int32),
               "token_count": np.zeros(rows, np.int32), "finished": np.zeros(rows, bool),
               "score": np.zeros(rows, np.float32),
               "token_logprobs": np.zeros((rows, CAPACITY), np.float32),
               "top_ids": np.full((rows, CAPACITY, TOP), -1, np.int32),
               "top_logprobs": np.zeros((rows, CAPACITY, TOP), np.float32)}
        for row in range(rows):
            held = _Held(cache[row], int(lengths[row]))
            for number in ids[row, :id_count[row]]:
                held.read(int(number))
            for step in range(int(count[row])):
                one = choose(logits_of(held.state), _row(options, row),
                             int(produced[row]) + step, allowed[row] if step == 0 else None)
                out["score"][row] += one.logprob
                if one.is_end:
                    out["finished"][row] = True
                    break
                out["token_logprobs"][row, step] = one.logprob
                out["top_ids"][row, step] = [number for number, _ in one.top]
                out["top_logprobs"][row, step] = [value for _, value in one.top]
                out["tokens"][row, step], out["token_count"][row] = one.token, step + 1
                if step + 1 < count[row]:
                    held.read(one.token)
            lengths[row] = held.length
        return {**out, "cache": cache, "lengths": lengths}


class _Held:
    """A row's cache as `steps` hands it around: two halves of a hash at each position."""

    def __init__(self, cache: np.ndarray, length: int) -> None:
        self._cache, self.length = cache, length
        self.state = 0
        if length:
            high, low = (int(half) for half in cache[:, 0, length - 1, 0])
            self.state = (high << 24) + low

    def read(self, number: int) -> None:
        self.state = read_on(self.state, number)
        self._cache[:, 0, self.length, 0] = (self.state >> 24, self.state & 0xFFFFFF)
        self.length += 1


def _row(options: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
    return {name: values[row] for name, values in options.items()}


def _check(options: Mapping[str, np.ndarray]) -> None:
    """Refuse what a graph refuses, in TensorFlow's words."""
    wrong = ~(options["temperature"] >= 0.0)
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidRequest(
            "{{function_node __inference_7}} assertion failed: [temperature: expected a finite "
            f"number >= 0.] [First such row:] [{row}] [got:] [{options['temperature'][row]}]\n\t "
            "[[{{node preprocess/Assert_1}}]]")


def _tops(found: Sequence[Chosen]) -> Arrays:
    return {"top_ids": np.asarray([[number for number, _ in one.top] for one in found], np.int32),
            "top_logprobs": np.asarray([[value for _, value in one.top] for one in found],
                                       np.float32)}


class FakeStepEngine:
    """A StepEngine; see the module.

    Args:
        slots: rows.
        chunk: most ids of one `read`.
        pause_s: of every step and of every read.
        before: called with "read", "step" or "extend" first; may raise.
        guesses: that it reads at once.
    """

    vocab_size = VOCAB

    def __init__(self, slots: int = 4, *, chunk: int = 8, pause_s: float = 0.0,
                 before: Callable[[str], None] | None = None, guesses: int = 0) -> None:
        self.slots, self.positions, self.chunk = slots, POSITIONS, chunk
        self.guesses = guesses
        self._states = np.zeros((slots, POSITIONS), np.uint64)
        self._pause_s, self._before = pause_s, before or (lambda what: None)
        self.read_ids = self.steps = self.rounds = self.most_joined = 0
        self.closed = False

    def _put(self, slot: int, number: int, place: int) -> int:
        state = read_on(int(self._states[slot, place - 1]) if place else 0, number)
        self._states[slot, place] = state
        return state

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """See `StepEngine.read`."""
        assert 1 <= len(ids) <= self.chunk and start + len(ids) <= self.positions
        self._before("read")
        time.sleep(self._pause_s)
        self.read_ids += len(ids)
        state = 0
        for place, number in enumerate(ids.tolist(), start):
            state = self._put(slot, number, place)
        return logits_of(state)

    def read_many(self, parts: Sequence[Part]) -> np.ndarray:
        """See `StepEngine.read_many`."""
        assert len({part.slot for part in parts}) == len(parts) > 0
        self.most_joined = max(self.most_joined, len(parts))
        return np.stack([self.read(*part) for part in parts])

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """See `StepEngine.step`."""
        assert len(set(active)) == len(active) > 0
        self._before("step")
        time.sleep(self._pause_s)
        self.steps += 1
        found = np.full((self.slots, VOCAB), np.nan, np.float32)
        for slot in active:
            found[slot] = logits_of(self._put(slot, int(tokens[slot]), int(lengths[slot])))
        return found

    def extend(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """See `StepEngine.extend`."""
        assert 1 <= len(ids) <= 1 + self.guesses and start + len(ids) <= self.positions
        self._before("extend")
        time.sleep(self._pause_s)
        self.rounds += 1
        return np.stack([logits_of(self._put(slot, number, place))
                         for place, number in enumerate(ids.tolist(), start)])

    def save(self, slot: int, length: int) -> np.ndarray:
        """See `StepEngine.save`."""
        return self._states[slot, :length].copy()

    def restore(self, slot: int, saved: Any) -> None:
        """See `StepEngine.restore`."""
        self._states[slot, :len(saved)] = saved

    def close(self) -> None:
        """Remember the end."""
        self.closed = True
