"""One build/read pair per method, no input or output: what to send, and what the answer means.

Both clients are made of these. Building raises ConfigError or ShapeError for what can be seen to be
wrong before anything is sent; reading raises ServerFailure for an answer that makes no sense.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from tf_infer.client import generation
from tf_infer.client.explanations import Explanation, explanation
from tf_infer.client.results import (
    Classification,
    Generation,
    Label,
    Likelihood,
    ModelMetadata,
    ModelStatus,
    Prediction,
)
from tf_infer.errors import (
    Code,
    ConfigError,
    InvalidRequest,
    ServerFailure,
    ServingError,
    ShapeError,
)
from tf_infer.wire import examples, messages, methods, tensors, timings
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef, PredictAnswer, SignatureInfo
from tf_infer.wire.methods import Method

T = TypeVar("T")
Text = str | bytes


class Unset(enum.Enum):
    """The value of an argument that was left out, where None has a meaning of its own."""

    UNSET = "unset"


UNSET = Unset.UNSET
LONGEST_S = 366 * 86_400.0  # gRPC's clock overflows at 1e12 s: the call would end at once
Timeout = float | None | Unset


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call: where it goes, what is sent, and how the answer is read.

    `read` is given the response message; of Predict a `PredictAnswer`. The request is bytes
    already: a large message beside its bytes would double the memory.
    """

    method: Method
    request: bytes
    read: Callable[[Any], T]

    def answer(self, data: bytes) -> T:
        """Return what the answer's bytes mean.

        Raises:
            ServerFailure: the bytes are no answer to this call.
        """
        try:
            where = f"answer to {self.method.name}"
            if self.method is methods.PREDICT:
                return self.read(messages.read_predict_response(data, where=where))
            return self.read(methods.parse(self.method.response, data, where=where))
        except (ShapeError, InvalidRequest) as error:
            reason = error.details if isinstance(error, InvalidRequest) else str(error)
            raise ServerFailure(f"{reason} The server's answer cannot be read.",
                                code=Code.INTERNAL) from error


def reference(model: str | ModelRef) -> ModelRef:
    """Return `model` as a ModelRef: a name means its highest available version."""
    return model if isinstance(model, ModelRef) else ModelRef(model)


def seconds(timeout_s: Timeout, default_s: float | None) -> float | None:
    """Return the time a call may take; more than a year, or infinity, is no limit: None.

    Raises:
        ConfigError: not a number > 0, and not None.
    """
    chosen = default_s if timeout_s is UNSET else timeout_s
    if chosen is None:
        return None
    if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or not chosen > 0:
        raise ConfigError(f"timeout_s: expected seconds > 0, or None for no limit, got {chosen!r}.")
    return chosen if chosen <= LONGEST_S else None


class Deadline:
    """The time that several calls of one method share."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    def left_or_zero_s(self) -> float | None:
        """Return the seconds left; 0 when they are over, None without a limit."""
        return None if self._end_s is None else max(self._end_s - time.monotonic(), 0.0)

    def left_s(self) -> float | None:
        """Return the seconds left, at least a millisecond: the call then ends with its deadline."""
        left_s = self.left_or_zero_s()
        return None if left_s is None else max(left_s, 0.001)


# ---------------------------------------------------------------------------- Predict


def predict(ref: ModelRef, inputs: Mapping[str, Any], *, signature: str,
            outputs: Sequence[str] = (), dtypes: Mapping[str, str] | None = None
            ) -> Call[Prediction]:
    """Ask any signature by Predict; see `Client.predict`."""
    if dtypes and (unknown := sorted(set(dtypes) - set(inputs))):
        raise ConfigError(f"dtypes: expected names of inputs {sorted(inputs)}, got {unknown}.")
    arrays = {name: tensors.as_array(value, where=name) for name, value in inputs.items()}
    request = messages.predict_request(ref, arrays, signature=signature, outputs=outputs,
                                       dtypes_by_name=dtypes)
    return Call(methods.PREDICT, request.SerializeToString(),
                lambda answer: _prediction(ref, signature, answer))


def _prediction(ref: ModelRef, signature: str, answer: PredictAnswer) -> Prediction:
    spec = answer.model_spec
    ran = ModelRef(spec.name or ref.name,
                   version=spec.version.value if spec.HasField("version") else None)
    return Prediction(ran, spec.signature_name or signature, answer.outputs)


def asking_for(wanted: bool | timings.Detail) -> tuple[tuple[str, str], ...]:
    """Return the metadata that asks for timings.

    Raises:
        ConfigError: neither True, False, "queue" nor "stages".
    """
    detail = "stages" if wanted is True else wanted
    if detail not in (False, "queue", "stages"):
        raise ConfigError('timings: expected True, False, "queue" or "stages", '
                          f"got {type(wanted).__name__}.")
    return ((timings.REQUEST_KEY, detail),) if detail else ()


def timed(prediction: Prediction, heard: Sequence[timings.Metadata]) -> Prediction:
    """Return a prediction with the timings that came behind the last answer."""
    return replace(prediction, timings=timings.from_metadata(heard[-1]) if heard else None)


def _texts(texts: Sequence[Text], name: str) -> np.ndarray:
    """Return texts as [B] objects.

    Raises:
        ConfigError: one text instead of a list of them.
        ShapeError: an element that is not text.
    """
    if isinstance(texts, (str, bytes)):
        raise ConfigError(f"{name}: expected a list of texts, got one {type(texts).__name__} of "
                          f"length {len(texts)}. Put it in a list.")
    array = np.empty(len(texts), dtype=object)
    array[:] = list(texts)
    return array


def _column(prediction: Prediction, name: str, rows: int) -> np.ndarray:
    """Return an output that must be there with one entry per row."""
    array = prediction.outputs.get(name)
    if array is None or array.ndim == 0 or array.shape[0] != rows:
        got = f"{sorted(prediction.outputs)}" if array is None else f"shape {list(array.shape)}"
        raise ShapeError(f"output {name!r}: expected one entry for each of {rows} rows, got {got}. "
                         f"Is {prediction.signature!r} such a signature? Ask it by predict().")
    return array


def _text(item: Any) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


# ---------------------------------------------------------------------------- classify


def classify(ref: ModelRef, texts: Sequence[Text], *, text_pairs: Sequence[Text] | None,
             signature: str) -> Call[Prediction]:
    """Ask a classifier for labels; its answer is read by `classifications`."""
    inputs = {"text": _texts(texts, "texts")}
    if text_pairs is not None:
        inputs["text_pair"] = _texts(text_pairs, "text_pairs")
        if len(text_pairs) != len(texts):
            raise ConfigError(f"text_pairs: expected {len(texts)}, one for each text, "
                              f"got {len(text_pairs)}.")
    rows = len(inputs["text"])

    def read(answer: Any) -> Prediction:
        prediction = _prediction(ref, signature, answer)
        _column(prediction, "label", rows)
        _column(prediction, "score", rows)
        return prediction

    call = predict(ref, inputs, signature=signature)
    return Call(call.method, call.request, read)


def explain(ref: ModelRef, texts: Sequence[Text], *, text_pairs: Sequence[Text] | None,
            target: str | Sequence[str] | None) -> Call[list[Explanation]]:
    """Ask a classifier's `explain` what made its answers."""
    inputs = {"text": _texts(texts, "texts")}
    rows = len(inputs["text"])
    if text_pairs is not None:
        inputs["text_pair"] = _texts(text_pairs, "text_pairs")
    targets = [target or ""] * rows if target is None or isinstance(target, str) else list(target)
    inputs["target"] = _texts(targets, "target")
    if {len(one) for one in inputs.values()} != {rows}:
        raise ConfigError(f"text_pairs, target: expected {rows}, one for each text.")
    given = zip(*(map(_bytes, inputs[name]) for name in ("text", "text_pair") if name in inputs))
    return _explained(ref, inputs, list(given), told=("label",))


def explain_token(ref: ModelRef, prompts: Sequence[Text], *, continuations: Sequence[Text] | None,
                  place: int | Sequence[int]) -> Call[list[Explanation]]:
    """Ask a decoder's `explain` what made a token likely."""
    inputs: dict[str, Any] = {"prompt": _texts(prompts, "prompts")}
    rows = len(inputs["prompt"])
    inputs["continuation"] = _texts([""] * rows if continuations is None else continuations,
                                    "continuations")
    places = [place] * rows if isinstance(place, int) else list(place)
    inputs["place"] = np.array(places, np.int32)
    if {len(one) for one in inputs.values()} != {rows}:
        raise ConfigError(f"continuations, place: expected {rows}, one for each prompt.")
    given = [(_bytes(prompt) + _bytes(continuation),)
             for prompt, continuation in zip(inputs["prompt"], inputs["continuation"])]
    return _explained(ref, inputs, given, told=("token", "id"))


def _explained(ref: ModelRef, inputs: Mapping[str, Any], given: Sequence[Sequence[bytes]], *,
               told: Sequence[str]) -> Call[list[Explanation]]:
    """Ask `explain`; `given` are the texts of each row, `told` what names the explained."""
    def read(answer: Any) -> list[Explanation]:
        prediction = _prediction(ref, "explain", answer)
        for name in (*told, "attributions", "left_out", "mask", "starts", "ends",
                     "score", "baseline", "completeness_error"):
            _column(prediction, name, len(given))
        return [explanation(dict(prediction.outputs), row, texts)
                for row, texts in enumerate(given)]

    call = predict(ref, inputs, signature="explain")
    return Call(call.method, call.request, read)


def _bytes(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def class_names_known(prediction: Prediction) -> bool:
    """Return whether scores come with names, or there are none to name."""
    return "classes" in prediction.outputs or "scores" not in prediction.outputs


def class_names(ref: ModelRef) -> Call[tuple[str, ...]]:
    """Ask for the class names, by the signature that TensorFlow Serving's Classify uses."""
    example = examples.to_example({"text": "", "text_pair": ""}).SerializeToString()
    call = predict(ref, {"inputs": [example]}, signature="classify", outputs=["classes"])

    def read(answer: Any) -> tuple[str, ...]:
        prediction = _prediction(ref, "classify", answer)
        return tuple(_text(item) for item in _column(prediction, "classes", 1).reshape(-1))

    return Call(call.method, call.request, read)


def classifications(prediction: Prediction, names: Sequence[str]) -> list[Classification]:
    """Return the labels of each text.

    Args:
        prediction: with outputs `label` [B], `score` [B], perhaps `scores` [B, C], `classes` [B, C]
            or [C], and of several labels `labels` [B, C], "" where a class is not given.
        names: of the C classes, used where the outputs do not tell; of another length: unknown.
    """
    outputs = prediction.outputs
    labels, best, scores = outputs["label"], outputs["score"], outputs.get("scores")
    count = scores.shape[1] if scores is not None and scores.ndim == 2 else 0
    if "classes" in outputs:
        names = [_text(item) for item in outputs["classes"].reshape(-1)[:count]]
    if len(names) != count:
        names = [""] * count
    answers = []
    for row, (label, score) in enumerate(zip(labels, best)):
        given = outputs["labels"][row].tolist() if "labels" in outputs else [label]
        answers.append(Classification(
            _text(label), float(score),
            tuple(map(Label, names, scores[row].tolist())) if scores is not None and count else (),
            tuple(_text(item) for item in given if item)))
    return answers


def classify_examples(ref: ModelRef, rows: Sequence[Mapping[str, Any]], *, signature: str,
                      context: Mapping[str, Any] | None) -> Call[list[list[Label]]]:
    """Ask TensorFlow Serving's own Classify."""
    request = pb.ClassificationRequest(model_spec=messages.model_spec(ref, signature),
                                       input=examples.to_input(rows, context=context))
    return Call(methods.CLASSIFY, request.SerializeToString(), lambda answer: [
        [Label(name, score) for name, score in row]
        for row in messages.read_classifications(answer)])


def regress_examples(ref: ModelRef, rows: Sequence[Mapping[str, Any]], *, signature: str,
                     context: Mapping[str, Any] | None) -> Call[np.ndarray]:
    """Ask TensorFlow Serving's own Regress."""
    request = pb.RegressionRequest(model_spec=messages.model_spec(ref, signature),
                                   input=examples.to_input(rows, context=context))
    return Call(methods.REGRESS, request.SerializeToString(), messages.read_regressions)


# ---------------------------------------------------------------------------- generate

# The options of signature `generate`, and the value sent when neither the caller nor the
# signature's own defaults give one (tf_infer.config.GenerationDefaults has the same).
OPTIONS: dict[str, int | float] = {
    "max_new_tokens": 32, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
GENERATE, SPECULATE = "generate", "speculate"
BEAM = "beam"  # signature of `Client.beam_search`
SCORE = "score"

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def row_seeds(seed: int, rows: int) -> list[int]:
    """Return a seed for each row: row 0 takes `seed`, row i SplitMix64's i-th output from it.

    Source: Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195. Range: int64.
    """
    seeds = []
    for row in range(rows):
        word = (seed + row * _GOLDEN) & _WORD
        if row:
            word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
            word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
            word ^= word >> 31
        seeds.append(word - 2**64 if word >= 2**63 else word)
    return seeds


def generate_signature(found: ModelMetadata, name: str = GENERATE) -> SignatureInfo:
    """Return the signature that continues prompts with options.

    Raises:
        ConfigError: the model has none.
    """
    try:
        return found.signatures[name]
    except KeyError:
        names = [known for known in found.signatures if not known.startswith("__")]
        raise ConfigError(f"generate: expected a decoder with the signature {name!r}, got "
                          f"{found.model} with {names}.") from None


def generate(ref: ModelRef, prompts: Sequence[Text], options: Mapping[str, Any],
             signature: SignatureInfo, *, draws: int = 1) -> Call[Prediction]:
    """Ask a decoder for continuations; its answer is read by `generations`.

    Args:
        ref: the model.
        prompts: texts, one row each.
        options: name -> one value for all rows or one for each; None counts as left out.
        signature: what the model's `generate` takes.
        draws: how many continuations of each prompt; they stand together, numbered by `draw`.

    Raises:
        ConfigError: an option the signature does not have, or not one value per row.
    """
    inputs = {"prompt": _texts(prompts, "prompts")}
    rows = len(inputs["prompt"])
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigError(f"n: expected a whole number >= 1, got {draws!r}.")
    known = [info.name for info in signature.inputs if info.name != "prompt"]
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"generate: expected options of {ref}: {known}, got {unknown}.")
    for info in signature.inputs:
        if info.name == "prompt":
            continue
        if info.name in given:
            inputs[info.name] = _option(info.name, given[info.name], info.dtype, rows)
        elif info.default is not None:
            value = info.default.reshape(-1)[0]
            inputs[info.name] = np.repeat(np.array([value], object), rows) if (
                info.dtype == "string") else _option(info.name, value, info.dtype, rows)
        elif info.has_default:
            continue  # the server knows it, in a form that we do not
        elif info.name in OPTIONS:
            inputs[info.name] = _option(info.name, _default(info.name, signature), info.dtype, rows)
        else:
            raise ConfigError(f"generate: expected a value for the option {info.name!r} of {ref}, "
                              f"which has no default. Pass options={{{info.name!r}: ...}}.")
    if draws > 1:
        inputs = {name: np.repeat(value, draws) for name, value in inputs.items()}
        if "draw" not in inputs or "draw" in given:
            raise ConfigError("n: expected 1 for a model without the option 'draw', or beside that "
                              f"option, got {draws}.")
        inputs["draw"] = np.tile(np.arange(draws, dtype=inputs["draw"].dtype), rows)
    # What nobody asked for need not travel: it is the larger part of an answer.
    outputs = [info.name for info in signature.outputs]
    if "logprobs" in given or not set(generation.TOLD) & set(outputs):
        outputs = []

    def read(answer: Any) -> Prediction:
        prediction = _prediction(ref, signature.name, answer)
        _column(prediction, "text", rows * draws)
        return prediction

    call = predict(ref, inputs, signature=signature.name,
                   outputs=[name for name in outputs if name not in generation.TOLD])
    return Call(call.method, call.request, read)


def _default(name: str, signature: SignatureInfo) -> int | float:
    """Return the value of an option that nobody gave; never more tokens than the output holds."""
    value = OPTIONS[name]
    ids = next((info for info in signature.outputs if info.name == "ids"), None)
    capacity = ids.shape[1] if ids is not None and ids.shape and len(ids.shape) == 2 else None
    return min(value, capacity) if name == "max_new_tokens" and capacity else value


def _option(name: str, value: Any, dtype: str, rows: int) -> np.ndarray:
    """Return an option as [B] of the signature's dtype."""
    if name == "seed" and isinstance(value, (int, np.integer)):
        value = np.array(row_seeds(int(value), rows), np.int64)
    if dtype == "string":
        return generation.strings(name, value, rows)
    array = tensors.as_array(value, where=name)
    if array.ndim == 0:
        array = np.repeat(array, rows)
    if array.shape != (rows,):
        raise ConfigError(f"{name}: expected one value, or one for each of {rows} prompts, "
                          f"got shape {list(array.shape)}.")
    if rows == 0:  # no value tells a dtype
        return tensors.cast(np.empty(0, object if dtype == "string" else np.int64), dtype)
    if array.dtype.kind in "fO" and dtype.startswith(("int", "uint")):
        raise ConfigError(f"{name}: expected whole numbers, got {array.dtype}.")
    cast = tensors.cast(array, dtype, where=name)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise ConfigError(f"{name}: expected numbers within {dtype}.")
    return cast


def generate_default(ref: ModelRef, prompts: Sequence[Text]) -> Call[Prediction]:
    """Ask a decoder for continuations with all of its own defaults: signature serving_default."""
    return generate(ref, prompts, {}, SignatureInfo(name=messages.SERVING_DEFAULT))


def generations(prediction: Prediction) -> list[Generation]:
    """Return the continuation of each row; outputs that the model does not give stay empty."""
    return generation.generations(prediction.outputs)


def hypotheses(prediction: Prediction) -> list[list[Generation]]:
    """Return the continuations of each row that beam search found, best first."""
    return generation.hypotheses(prediction.outputs)


def score(ref: ModelRef, prompts: Sequence[Text], continuations: Sequence[Text]
          ) -> Call[list[Likelihood]]:
    """Ask a decoder's `score` how likely continuations are."""
    inputs = {"prompt": _texts(prompts, "prompts"),
              "continuation": _texts(continuations, "continuations")}
    rows = len(inputs["prompt"])
    if len(inputs["continuation"]) != rows:
        raise ConfigError(f"continuations: expected {rows}, one for each prompt, "
                          f"got {len(inputs['continuation'])}.")

    def read(answer: Any) -> list[Likelihood]:
        prediction = _prediction(ref, SCORE, answer)
        scores, lengths, logprobs, perplexities = (
            _column(prediction, name, rows)
            for name in ("score", "length", "token_logprobs", "perplexity"))
        return [Likelihood(float(scores[row]), tuple(logprobs[row, :lengths[row]].tolist()),
                           float(perplexities[row])) for row in range(rows)]

    call = predict(ref, inputs, signature=SCORE)
    return Call(call.method, call.request, read)


# ---------------------------------------------------------------------------- metadata, status


def metadata(ref: ModelRef) -> Call[ModelMetadata]:
    """Ask what a model takes and gives."""
    request = pb.GetModelMetadataRequest(model_spec=messages.model_spec(ref),
                                         metadata_field=[messages.SIGNATURE_DEF])
    return Call(methods.GET_MODEL_METADATA, request.SerializeToString(),
                lambda answer: ModelMetadata(*messages.read_metadata(answer)))


def status(ref: ModelRef) -> Call[ModelStatus]:
    """Ask which versions of a model the server knows, and in which state. A label is ignored."""
    request = pb.GetModelStatusRequest(model_spec=messages.model_spec(ref))
    return Call(methods.GET_MODEL_STATUS, request.SerializeToString(),
                lambda answer: ModelStatus(ref, messages.read_status(answer)))


def is_ready(found: ModelStatus) -> bool:
    """Return whether the model can be asked.

    Raises:
        ServerFailure: every version of the answer failed to load; carries the first one's reason.
    """
    if found.available:
        return True
    failed = [one for one in found.versions if one.state == "END" and one.error_code != "OK"]
    if failed and len(failed) == len(found.versions):
        raise ServerFailure(f"{found.model} version {failed[0].version} failed to load: "
                            f"{failed[0].error_message}", code=Code[failed[0].error_code])
    return False


def not_ready(ref: ModelRef, waited_s: float, last: ModelStatus | ServingError | None) -> str:
    """Return the text for a model that did not become ready in time."""
    if isinstance(last, ModelStatus):
        states = ", ".join(f"version {one.version} {one.state}" for one in last.versions)
        seen = states or "no version"
    else:
        seen = str(last) if last is not None else "no answer"
    return f"{ref}: expected to be AVAILABLE within {waited_s:g} s, last seen: {seen}."
