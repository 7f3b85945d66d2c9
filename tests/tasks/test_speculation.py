"""The signature `speculate`: the answer of `generate`, whoever guesses, and how the guesses did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays
from tf_infer.config import CausalLMConfig, GenerationDefaults
from tf_infer.errors import ConfigError
from tf_infer.tasks import options
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.whole

GUESSES = 3
CONFIG = replace(small.SHALLOW_DECODER, capacity=12, guesses=GUESSES, end_ids=(2, *range(240, 259)),
                 network=replace(small.SHALLOW_DECODER.network, max_positions=48),
                 defaults=GenerationDefaults(max_new_tokens=12))
PROMPTS = ["abcabcabc", "", "naïve 中文 🙂", "x" * 40, "Where is it? Where is"]
Ask = Callable[..., dict[str, np.ndarray]]


def asker(task: CausalLM, signature: str) -> Ask:
    found = task.signatures()[signature]
    traced = tf.function(found.function, autograph=False).get_concrete_function(
        **found.input_specs())  # with free rows: seconds to trace, for any number of them

    def ask(prompts: list[str], **given: object) -> dict[str, np.ndarray]:
        count = len(prompts)
        plain = options.defaults_for(tf.constant(count), task.config)
        rows = {name: plain[name] for name in plain
                if name in {spec.name for spec in found.spec.inputs}}
        rows |= {name: tf.cast(tf.fill([count], value) if np.ndim(value) == 0 else value,
                               rows[name].dtype) for name, value in given.items()}
        return as_arrays(traced(prompt=tf.constant(prompts), **rows))

    return ask


@pytest.fixture(scope="module")
def task() -> CausalLM:
    return build(CONFIG, seed=3)


@pytest.fixture(scope="module")
def generate(task: CausalLM) -> Ask:
    return asker(task, "generate")


def drafted(task: CausalLM, config: CausalLMConfig, seed: int) -> CausalLM:
    return task.speculating(GUESSES, draft=build(replace(config, guesses=0), seed=seed))


@pytest.fixture(scope="module")
def with_draft(task: CausalLM) -> tuple[CausalLM, Ask]:
    """A task with a draft, traced once for all weights that the draft may get."""
    found = drafted(task, CONFIG, 4)
    return found, asker(found, "speculate")


@pytest.fixture(scope="module", params=["prompt look-up", "itself", "another"])
def speculate(request: pytest.FixtureRequest, task: CausalLM) -> tuple[str, Ask]:
    if request.param == "prompt look-up":
        return request.param, asker(task, "speculate")
    found, ask = request.getfixturevalue("with_draft")
    seed = 3 if request.param == "itself" else 4
    found.draft.set_weights(build(CONFIG, seed=seed).network.get_weights())
    return request.param, ask


@pytest.mark.parametrize("given", [
    {"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9, "seed": [1, 2, 3, 4, 5]},
    {"temperature": [0.0, 1.0, 0.0, 0.7, 1.3], "top_k": 5, "max_new_tokens": [12, 0, 1, 7, 12]}])
def test_tokens_and_scores_are_those_of_generate(speculate: tuple[str, Ask], generate: Ask,
                                                 given: dict[str, object]) -> None:
    found, wanted = speculate[1](PROMPTS, **given), generate(PROMPTS, **given)
    assert wanted["length"].max() > 4
    for name in ("text", "ids", "length", "finish_reason"):
        assert found[name].tolist() == wanted[name].tolist(), name
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=0, atol=1e-4)


def test_rounds_and_guesses_are_counted(speculate: tuple[str, Ask]) -> None:
    name, ask = speculate
    found = ask(PROMPTS, temperature=0.0)
    # The first token is prefill's; each round writes one more than it accepts, an end among them.
    written = found["length"] + (found["finish_reason"] == b"stop")
    assert (found["rounds"] + found["accepted"] == written - 1).all()
    assert (found["accepted"] <= found["proposed"]).all()
    assert (found["proposed"] <= GUESSES * found["rounds"]).all()
    if name == "itself":
        to_the_limit = found["finish_reason"] == b"length"  # an end leaves guesses behind it
        assert to_the_limit.any()
        assert (found["accepted"] == found["proposed"])[to_the_limit].all()
        assert found["rounds"].max() <= -(-11 // (GUESSES + 1))


def test_a_row_alone_is_the_row_in_a_crowd(speculate: tuple[str, Ask]) -> None:
    given = {"temperature": [0.0, 1.0, 0.8, 0.0, 1.0], "seed": [5, 6, 7, 8, 9]}
    crowd = speculate[1](PROMPTS, **given)
    for row in (0, 2, 4):
        alone = speculate[1]([PROMPTS[row]], **{name: [values[row]]
                                                for name, values in given.items()})
        for name in ("text", "ids", "length", "rounds", "proposed", "accepted", "finish_reason"):
            assert np.array_equal(alone[name][0], crowd[name][row]), name


def test_without_guesses_there_is_no_such_signature(task: CausalLM) -> None:
    assert "speculate" not in task.speculating(0).signatures()


def test_a_draft_of_another_vocabulary_or_fewer_positions_is_refused(task: CausalLM) -> None:
    short = replace(CONFIG, guesses=0, packing=replace(small.PROMPT, max_tokens=16),
                    grid=replace(CONFIG.grid, tokens=(16,)),
                    network=replace(CONFIG.network, max_positions=31))
    with pytest.raises(ConfigError, match="draft: expected a network that reads at least 32"):
        task.speculating(2, draft=build(short, seed=1))


def test_what_it_was_made_of_is_kept_when_a_task_is_made_anew(task: CausalLM) -> None:
    found = drafted(task, CONFIG, 4)
    for other in (found.recompiled("none"), found.constrained({}), found.explaining()):
        assert other.draft is found.draft and other.config.guesses == GUESSES
