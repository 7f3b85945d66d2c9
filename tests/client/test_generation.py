"""Options of a decoder as Python values: what is sent for them, and what is read of the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tf_infer.client import calls, generation
from tf_infer.client.results import Alternative
from tf_infer.errors import ConfigError
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire import tensors
from tf_infer.wire.messages import ModelRef, SignatureInfo, TensorInfo

OPTIONS = {"max_new_tokens": ("int32", 8), "temperature": ("float32", 0.0), "seed": ("int64", 0),
           "draw": ("int32", 0), "logprobs": ("int32", 0), "stop": ("string", b""),
           "stop_ids": ("string", b""), "banned": ("string", b""), "logit_bias": ("string", b""),
           "forced_prefix": ("string", b"")}
OUTPUTS = ("text", "ids", "length", "score", "finish_reason", *generation.TOLD)


def signature(options: dict[str, Any] = OPTIONS) -> SignatureInfo:
    inputs = [TensorInfo(name="prompt", dtype="string", shape=(None,))]
    inputs += [TensorInfo(name=name, dtype=dtype, shape=(None,), has_default=True, default=np.array(
        [value], object if dtype == "string" else dtype)) for name, (dtype, value) in
        options.items()]
    return SignatureInfo(name="generate", inputs=tuple(inputs), outputs=tuple(
        TensorInfo(name=name, dtype="float32", shape=None) for name in OUTPUTS))


def sent(prompts: list[str], options: dict[str, Any], **more: Any) -> tuple[dict[str, list], list]:
    """Return inputs and the names of outputs that are asked for."""
    call = calls.generate(ModelRef("m"), prompts, options, signature(), **more)
    request = pb.PredictRequest.FromString(call.request)
    return ({name: tensors.to_array(proto).tolist() for name, proto in request.inputs.items()},
            list(request.output_filter))


def test_lists_and_mappings_become_one_string_a_row() -> None:
    inputs, _ = sent(["a", "b"], {
        "stop": ["\n", "中"], "stop_ids": [[5, np.int64(7)], []], "banned": [["x", b"\xff"], None],
        "logit_bias": {5: -1.5, 9: 2}, "forced_prefix": ["yes", ""]})
    assert inputs["stop"] == ["\n\x1f中".encode()] * 2
    assert inputs["stop_ids"] == [b"5\x1f7", b""]
    assert inputs["banned"] == [b"x\x1f\xff", b""]
    assert inputs["logit_bias"] == [b"5:-1.5\x1f9:2.0"] * 2
    assert inputs["forced_prefix"] == [b"yes", b""]
    assert inputs["max_new_tokens"] == [8, 8]


def test_one_text_is_a_list_of_one_and_mappings_differ_by_row() -> None:
    inputs, _ = sent(["a", "b"], {"stop": "ab", "logit_bias": [{1: 1e-9}, None], "stop_ids": [3],
                                  "forced_prefix": "x"})
    assert inputs["stop"] == [b"ab"] * 2 and inputs["stop_ids"] == [b"3"] * 2
    assert inputs["logit_bias"] == [b"1:1e-09", b""]
    assert inputs["forced_prefix"] == [b"x", b"x"]


def test_draws_of_a_prompt_stand_together_with_its_options_and_its_seed() -> None:
    inputs, _ = sent(["a", "b"], {"temperature": [0.5, 1.0], "seed": 7, "stop": [["x"], ["y"]]},
                     draws=3)
    first, second = calls.row_seeds(7, 2)
    assert inputs["prompt"] == [b"a"] * 3 + [b"b"] * 3
    assert inputs["draw"] == [0, 1, 2, 0, 1, 2]
    assert inputs["seed"] == [first] * 3 + [second] * 3
    assert inputs["temperature"] == [0.5] * 3 + [1.0] * 3
    assert inputs["stop"] == [b"x"] * 3 + [b"y"] * 3


def test_log_probabilities_travel_only_when_asked_for() -> None:
    assert sent(["a"], {"seed": 1})[1] == ["text", "ids", "length", "score", "finish_reason"]
    inputs, outputs = sent(["a"], {"logprobs": 0})
    assert outputs == [] and inputs["logprobs"] == [0]


@pytest.mark.parametrize(("options", "message"), [
    ({"stop": ["a", ""]}, "stop: expected texts that are not empty"),
    ({"stop": ["secret\x1fb"]}, "stop: expected texts without U\\+001F"),
    ({"stop": [b"secret\x1fb"]}, "stop: expected texts without U\\+001F"),
    ({"stop": [["a"]]}, "stop: expected one value, or one for each of 2 prompts, got 1"),
    ({"stop": 5}, "stop: expected a list, got int"),
    ({"banned": [5]}, "banned: expected text, got int"),
    ({"stop_ids": [1.5]}, "stop_ids: expected ids, whole numbers >= 0, got float"),
    ({"stop_ids": [True]}, "stop_ids: expected ids"),
    ({"stop_ids": [-1]}, "stop_ids: expected ids"),
    ({"logit_bias": {"5": 1.0}}, "logit_bias: expected ids"),
    ({"logit_bias": {5: float("nan")}}, "logit_bias: expected finite numbers"),
    ({"logit_bias": {5: "1"}}, "logit_bias: expected finite numbers"),
    ({"logit_bias": [[5, 1.0], [6, 1.0]]}, "logit_bias: expected {id: value}"),
    ({"forced_prefix": [1, 2]}, "forced_prefix: expected text, got int"),
    ({"forced_prefix": ["a"]}, "forced_prefix: expected one value, or one for each of 2"),
    ({"draws": 0}, "n: expected a whole number >= 1, got 0"),
    ({"draws": 2, "draw": 1}, "n: expected 1 for a model without the option 'draw', or beside"),
])
def test_wrong_values_are_refused_by_name_before_anything_is_sent(
        options: dict[str, Any], message: str) -> None:
    draws = options.pop("draws", 1) if "draws" in options else 1
    with pytest.raises(ConfigError, match=message) as caught:
        sent(["a", "b"], options, draws=draws)
    assert "secret" not in str(caught.value)


def test_draws_of_a_model_without_them_are_refused() -> None:
    plain = signature({"seed": ("int64", 0)})
    with pytest.raises(ConfigError, match="model without the option 'draw'"):
        calls.generate(ModelRef("m"), ["a"], {}, plain, draws=2)


def answer() -> dict[str, np.ndarray]:
    return {"text": np.array([b"ab", b""], object), "ids": np.int32([[5, 6, 0], [0, 0, 0]]),
            "length": np.int32([2, 0]), "score": np.float32([-1.5, -2.0]),
            "finish_reason": np.array([b"length", b"stop"], object),
            "token_logprobs": np.float32([[-1.0, -0.5, 0.0], [0.0, 0.0, 0.0]]),
            "top_ids": np.int32([[[5, 7], [9, -1], [-1, -1]], [[-1, -1]] * 3]),
            "top_logprobs": np.float32([[[-1.0, -2.0], [-0.25, 0.0], [0.0, 0.0]], [[0, 0]] * 3])}


def test_an_answer_tells_log_probabilities_of_its_tokens_alone() -> None:
    first, second = generation.generations(answer())
    assert (first.text, first.ids, first.score) == ("ab", (5, 6), -1.5)
    assert first.token_logprobs == (-1.0, -0.5)
    assert first.top_logprobs == ((Alternative(5, -1.0), Alternative(7, -2.0)),
                                  (Alternative(9, -0.25),))
    assert second.token_logprobs == () and second.top_logprobs == ()
    bare = {name: value for name, value in answer().items() if name not in generation.TOLD}
    assert generation.generations(bare)[0].token_logprobs == ()


def test_hypotheses_that_there_are_not_are_left_out() -> None:
    found = generation.hypotheses({
        "text": np.array([[b"ab", b"c", b""]], object), "length": np.int32([[2, 1, 0]]),
        "ids": np.int32([[[5, 6], [7, 0], [0, 0]]]), "score": np.float32([[-1, -2, -3e38]]),
        "finish_reason": np.array([[b"stop", b"length", b"none"]], object)})
    assert [[(one.text, one.ids, one.finish_reason) for one in row] for row in found] == [
        [("ab", (5, 6), "stop"), ("c", (7,), "length")]]
