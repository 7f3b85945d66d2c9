"""The error table, row by row, in both directions."""

from __future__ import annotations

import pickle

import grpc
import pytest

from tf_infer import errors
from tf_infer.errors import Code


def test_every_grpc_code_has_exactly_one_row() -> None:
    assert [row.code for row in errors.TABLE] == list(Code)
    assert {(c.name, c.value[0]) for c in grpc.StatusCode} == {(c.name, int(c)) for c in Code}


@pytest.mark.parametrize("row", errors.TABLE[1:], ids=lambda row: row.code.name)
def test_a_code_becomes_its_exception_and_keeps_code_and_text(row: errors.Row) -> None:
    error = errors.exception_for(row.code, "why")
    assert type(error) is row.exception
    assert (error.code, error.details) == (row.code, "why")
    assert str(error) == f"{row.code.name}: why"
    assert isinstance(error, errors.TfInferError)


@pytest.mark.parametrize("row", errors.TABLE[1:], ids=lambda row: row.code.name)
def test_an_exception_stands_for_a_code_of_its_own(row: errors.Row) -> None:
    assert row.exception is not None
    code = errors.default_code(row.exception)
    assert type(errors.exception_for(code, "")) is row.exception


@pytest.mark.parametrize("error", [
    *(errors.exception_for(row.code, "why") for row in errors.TABLE[1:]),
    errors.VerificationError("two paths differ", report={"passed": False})],
    ids=lambda error: f"{type(error).__name__} {getattr(error, 'code', '')}")
def test_an_exception_comes_back_from_another_process_as_it_was(error: Exception) -> None:
    error.__notes__ = ["while exporting"]  # what add_note does from Python 3.11 on
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_only_overload_and_absence_are_retried() -> None:
    assert {c for c in Code if errors.is_retryable(c)} == {
        Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}


def test_http_status_is_tensorflow_servings() -> None:
    expected = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
                "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
                "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
                "CANCELLED": 499, "UNKNOWN": 500, "INTERNAL": 500, "DATA_LOSS": 500,
                "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "OK": 200}
    assert {code.name: errors.http_status(code) for code in Code} == expected


def test_python_habits_catch_them_too() -> None:
    assert isinstance(errors.exception_for(Code.INVALID_ARGUMENT, ""), ValueError)
    assert isinstance(errors.exception_for(Code.DEADLINE_EXCEEDED, ""), TimeoutError)
    assert isinstance(errors.exception_for(Code.UNAVAILABLE, ""), ConnectionError)


def test_an_unknown_number_counts_as_unknown_and_ok_is_refused() -> None:
    assert errors.exception_for(99, "").code is Code.UNKNOWN
    with pytest.raises(errors.ConfigError, match="other than OK"):
        errors.exception_for(Code.OK, "")


ROW_OF_A_GRAPH = (
    "{{function_node __inference_call_159096}} {{function_node __inference_call_159096}} "
    "assertion failed: [temperature: expected a finite number >= 0.] [First such row:] [2] "
    "[got:] [nan]\n\t [[{{function_node __inference_named_152873}}{{node preprocess/Assert_1}}]]"
    "\n\t [[StatefulPartitionedCall_6]]")


@pytest.mark.parametrize(("details", "said"), [
    (ROW_OF_A_GRAPH, "temperature: expected a finite number >= 0, got nan (row 2)."),
    ("assertion failed: [stop: expected at most 8 texts [B].] [First such row:] [0]\n\t [[node]]",
     "stop: expected at most 8 texts [B] (row 0)."),
    ("assertion failed: [x must be small] [7]\n\t [[{{node Assert}}]]",
     "assertion failed: [x must be small] [7]\n\t [[{{node Assert}}]]"),
    ("top_k: expected >= 0, got -2.", "top_k: expected >= 0, got -2."), ("", "")])
def test_a_check_of_ours_is_told_without_the_names_of_nodes(details: str, said: str) -> None:
    assert errors.plain(details) == said
