"""JSON Schemas as automata, against the jsonschema package; no TensorFlow."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.constraints.vocabularies import full
from tests.constraints.walks import distances, walk
from tf_infer.constraints.automaton import TokenAutomaton
from tf_infer.constraints.compiler import compiled
from tf_infer.constraints.integers import integer_range
from tf_infer.constraints.schemas import expression
from tf_infer.errors import ConfigError

jsonschema = pytest.importorskip("jsonschema", reason="needs pip install jsonschema")
pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")

VOCABULARY = full()
PERSON = {"type": "object", "title": "Person", "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 6},
    "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 130},
    "mail": {"anyOf": [{"type": "string", "pattern": "^[a-z]{1,4}@[a-z]+\\.(com|org)$"},
                       {"type": "null"}], "default": None},
    "tags": {"type": "array", "items": {"enum": ["a", "b\n\"", 1.5, None, {"x": [1]}]},
             "minItems": 1, "maxItems": 3}}, "required": ["name", "tags"],
    "additionalProperties": False}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": PERSON, "maxItems": 2},
    {"type": "object", "properties": {"a\"é/": {"const": 1}, "b": {"type": ["null", "boolean"]}}},
    {"type": "object", "additionalProperties": {"type": "number"}},
    {"type": "object", "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}],
     "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False},
    {"type": "array", "items": {"type": "null"}, "minItems": 3},
    {"type": "string", "pattern": "\"|\\\\n[^a]"},
    {"type": "string", "maxLength": 3},
    {"type": "integer", "minimum": -17, "maximum": 1203},
    {"type": "integer", "exclusiveMinimum": 99},
    {"enum": [1, 1.0, "1", True, None], "type": ["integer", "string"]},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"allOf": [{"$ref": "#/$defs/c"}]},
                                       "c": {"type": "boolean", "description": "x"}}},
    {"oneOf": [{"type": "object", "required": ["kind"], "properties": {
        "kind": {"const": "dog"}, "age": {"type": "integer"}}},
        {"type": "object", "required": ["kind", "x"], "properties": {
            "kind": {"enum": ["cat", "cow"]}, "x": {"type": "null"}}}, {"type": "string"}],
     "discriminator": {"propertyName": "kind"}},
    {"properties": {"x": {"type": "number"}}, "required": ["x"]},
    {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"t": {"type": "null"}},
     "type": "array", "items": {"$ref": "#/definitions/t"}, "maxItems": 1},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -2.5, "minimum": -2.5, "exclusiveMaximum": 1e3},
    {"type": ["number", "null"], "minimum": 17.25},
    {"type": "number", "minimum": -1e18, "maximum": 1e18},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.004},
]


def of(schema: Any) -> TokenAutomaton:
    return compiled("json_schema", json.dumps(schema), VOCABULARY)


def texts(automaton: TokenAutomaton, count: int, seed: int = 0, free_tokens: int = 30) -> list[str]:
    random, far = np.random.default_rng(seed), distances(automaton)
    return [VOCABULARY.tokens.join(walk(automaton, random, far, free_tokens=free_tokens)).decode()
            for _ in range(count)]


def takes(automaton: TokenAutomaton, text: str) -> bool:
    return automaton.accepts([2 + byte for byte in text.encode()])


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_every_text_is_valid(schema: dict[str, Any]) -> None:
    validator = jsonschema.validators.validator_for(schema)(schema)
    found = texts(of(schema), 40)
    for text in found:
        validator.validate(json.loads(text))
    if schema not in ({"type": "object", "additionalProperties": False},):
        assert len(set(found)) > 1


VALID = [
    (PERSON, {"name": "Zoë\"", "age": 129, "mail": "ab@c.org", "tags": ["a", {"x": [1]}]}),
    (PERSON, {"name": "x", "tags": [None]}), (SCHEMAS[3], {"a": 1.5, "é\t": -2e-10}),
    (SCHEMAS[5], [None]), (SCHEMAS[5], [None, True, 1, 2]), (SCHEMAS[6], []),
    (SCHEMAS[8], "x\"y"), (SCHEMAS[8], "\\n\\n\n"), (SCHEMAS[14], {"kind": "cow", "x": None}),
    (SCHEMAS[11], 10**16 - 1), (SCHEMAS[17], 0.5), (SCHEMAS[17], 1), (SCHEMAS[18], -2.25),
    (SCHEMAS[18], 999.875), (SCHEMAS[20], -123456.75), (SCHEMAS[21], 0.004),
    (SCHEMAS[2], {}), (SCHEMAS[2], {"b": None})]


@pytest.mark.parametrize(("schema", "value"), VALID, ids=range(len(VALID)))
def test_valid_values_pass_with_and_without_spaces(schema: Any, value: Any) -> None:
    automaton = of(schema)
    assert takes(automaton, json.dumps(value, ensure_ascii=False))
    assert takes(automaton, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert not takes(automaton, json.dumps(value) + " ")


INVALID: list[tuple[Any, str]] = [
    ("{", "json_schema: expected JSON, got an error at line 1, column 2"),
    ('{"type": 1e999}', "numbers too large"), ('{"const": NaN}', "numbers too large"),
    ('{"const": "\\ud800"}', "halves of characters"), ("[" * 100_000, "lists too deep"),
    (" " * 200_001, "expected at most 200000 characters"),
    ({"minimum": 3}, "expected a type at #, got none"), (5, "at #, got a schema of another kind"),
    (False, "at #, got a schema of another kind"), ({"type": "object", "additionalProperties": 5},
                                                    "another kind"),
    ({"type": "any"}, "at #/type"), ({"type": []}, "at #/type"), ({"type": {"a": 1}}, "at #/type"),
    ({"type": "number", "minimum": "1"}, "at #/minimum"),
    ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "a range that holds a number at #"),
    ({"type": "number", "minimum": 0.1234567890123456}, "bounds of at most 15 digits at #"),
    ({"type": "integer", "multipleOf": 2}, "at #/multipleOf"),
    ({"type": "integer", "minimum": 0.5}, "at #/minimum"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "a range that holds a number at #"),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "at #/uniqueItems"),
    ({"type": "array", "items": [{"type": "null"}]}, "at #/items"),
    ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "minItems <= max"),
    ({"type": "object", "properties": {"a": {"type": "null", "x": 1}}}, "at #/properties/a/x"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "minProperties": 1},
     "at #/minProperties"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "patternProperties": {}},
     "at #/patternProperties"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "#/required"),
    ({"type": "string", "format": "email"}, "at #/format"),
    ({"type": "string", "pattern": "a(?=b)"}, "at #/pattern: expected an expression .* position 1"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "one of pattern, format and lengths at #"),
    ({"type": "string", "pattern": "^\x01$"}, "at #/pattern: expected a set that holds"),
    ({"type": "string", "minLength": -1}, "at #/minLength"),
    ({"allOf": [{"type": "null"}, {"type": "null"}]}, "at #/allOf"),
    ({"not": {"type": "null"}}, "at #, got none"), ({"type": "null", "not": {}}, "at #/not"),
    ({"type": "null", "if": {}, "then": {}}, "at #/if"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "at #/oneOf/1"),
    ({"oneOf": [{"type": "string"}, {"properties": {"a": {"type": "null"}}}]}, "at #/oneOf/1"),
    ({"anyOf": [{"type": "null"}], "type": "null"}, "at #/type"),
    ({"anyOf": []}, "at #/anyOf"), ({"anyOf": [{"type": "null"}], "enum": [1]}, "together"),
    ({"enum": [1], "type": "string"}, "a value of the type beside it at #/enum"),
    ({"enum": [1], "minimum": 0}, "at #/minimum"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"},
                                           "minItems": 1}}},
     r"a recursion that can end within 12 levels at #/\$defs/a/items/\$ref, got one that cannot"),
    ({"$ref": "#"}, r"a recursion that can end within 12 levels at #/\$ref"),
    ({"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(200)}},
     "a part whose expression has at most 400000 characters at #"),
    ({"$ref": "#/$defs/n0", "$defs": {f"n{i}": {"type": "object", "properties": {
        f"p{j}": {"$ref": f"#/$defs/n{j}"} for j in range(8)}, "required": [
            f"p{j}" for j in range(8)]} for i in range(8)}}, "at most 100000 parts"),
    ({"$ref": "http://x/y"}, "at #/\\$ref"), ({"$ref": "#name"}, "a reference into the schema"),
    ({"$ref": "#/$defs/b"}, "a part that is there"), ({"$schema": "x", "type": "null"}, "#/\\$sch"),
    ({"$id": "x", "type": "null"}, "at #/\\$id"),
    ({"type": "string", "format": []}, "at #/format"),
    ({"type": "array", "items": {"type": "null"}, "minItems": None}, "at #/minItems"),
    ({"oneOf": [{"type": 5}, {"type": "null"}]}, "at #/oneOf/0/type"),
    ({"oneOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                {"type": "object", "properties": [], "required": ["a"]}]},
     "at #/oneOf/1/properties"),
    ({"oneOf": [{"const": number} for number in range(2_000)]}, "at most 256 schemas .* at #/oneO"),
]


@pytest.mark.parametrize(("schema", "message"), INVALID, ids=range(len(INVALID)))
def test_what_is_not_honoured_is_refused_with_its_path(schema: Any, message: str) -> None:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(ConfigError, match=re.sub(r"#(?=/)", "#", message)):
        expression(text)


def test_references_that_multiply_are_bounded() -> None:
    defs: dict[str, Any] = {"n0": {"type": "string"}}
    for i in range(40):
        ref = {"$ref": f"#/$defs/n{i}"}
        defs[f"n{i + 1}"] = {"type": "array", "prefixItems": [ref, ref], "minItems": 2}
    with pytest.raises(ConfigError, match="whose expression has at most 400000 characters"):
        expression(json.dumps({"$ref": "#/$defs/n40", "$defs": defs}))


@settings(max_examples=300, deadline=None)
@given(st.integers(-3_000, 3_000), st.integers(0, 3_000), st.integers(-9_000, 9_000))
def test_a_range_holds_its_numbers_and_no_other(low: int, size: int, probe: int) -> None:
    pattern = re.compile(integer_range(low, low + size))
    for number in (probe, low - 1, low, low + size, low + size + 1, 0):
        assert bool(pattern.fullmatch(str(number))) == (low <= number <= low + size)
    assert not any(pattern.fullmatch(text) for text in ("-0", "00", "01", ""))


@pytest.mark.parametrize("kind", ["date", "date-time", "time", "uuid", "ipv4"])
def test_formats_give_what_they_name(kind: str) -> None:
    import ipaddress
    import uuid
    from datetime import time
    read = {"date": date.fromisoformat, "uuid": uuid.UUID, "ipv4": ipaddress.IPv4Address,
            "date-time": lambda text: datetime.fromisoformat(_plain(text)),
            "time": lambda text: time.fromisoformat(_plain(text))}[kind]
    for text in texts(of({"type": "string", "format": kind}), 50):
        read(json.loads(text))


def _plain(text: str) -> str:
    # Python 3.10 reads only "+00:00", and fractions of 3 or 6 digits.
    return re.sub(r"\.\d+", "", text).replace("Z", "+00:00")


leaves = st.sampled_from([
    {"type": "null"}, {"type": "boolean"}, {"type": "number"}, {"type": "string", "maxLength": 4},
    {"type": "integer", "minimum": -5, "maximum": 512}, {"enum": ["a", 2, None]},
    {"type": "string", "pattern": "[a-c]+"}, {"type": "string", "format": "date"}])


def schemas_of(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(leaves, lambda inner: st.one_of(
        st.builds(lambda items, low, more: {"type": "array", "items": items, "minItems": low,
                                            "maxItems": low + more},
                  inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(lambda parts, needed: {"type": "object", "properties": parts,
                                         "required": [name for name in parts if name in needed]},
                  st.dictionaries(st.sampled_from(["a", "b", "é\"", "d"]), inner, min_size=1,
                                  max_size=3), st.sets(st.sampled_from(["a", "b", "é\"", "d"]))),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)), max_leaves=5)


SCHEMA = schemas_of(leaves)


def check_random_schema(schema: dict[str, Any], seed: int) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for text in texts(of(schema), 10, seed, free_tokens=20):
        validator.validate(json.loads(text))


@settings(max_examples=8, deadline=None)
@given(SCHEMA, st.integers(0, 99))
def test_texts_of_random_schemas_are_valid(schema: dict[str, Any], seed: int) -> None:
    check_random_schema(schema, seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(SCHEMA, st.integers(0, 99))
def test_texts_of_many_random_schemas_are_valid(schema: dict[str, Any], seed: int) -> None:
    check_random_schema(schema, seed)


# ---------------------------------------------------------------------------- recursion

NODE = {"$ref": "#/$defs/node"}


def recursive(node: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**NODE, "$defs": {"node": node, **others}}


def nested(start: Any, step: Any) -> Any:
    """Return what makes a value of some levels."""
    def made(levels: int) -> Any:
        value = start
        for _ in range(levels - 1):
            value = step(value)
        return value
    return made


# What docs/constraints.md says: a schema, a value of so many levels, and the most that there are.
DEPTHS: list[tuple[dict[str, Any], Any, int]] = [
    (recursive({"type": "object", "properties": {
        "value": {"type": "integer"}, "next": {"anyOf": [NODE, {"type": "null"}]}},
        "required": ["value", "next"]}),
     nested({"value": 1, "next": None}, lambda rest: {"value": -20, "next": rest}), 12),
    (recursive({"type": "object", "properties": {
        "name": {"type": "string"}, "children": {"type": "array", "items": NODE}},
        "required": ["name", "children"]}),
     nested({"name": "é", "children": []}, lambda inner: {
         "name": "", "children": [{"name": "x", "children": []}, inner]}), 6),
    (recursive({"type": "object", "properties": {
        "value": {"type": "integer"}, "left": NODE, "right": NODE}, "required": ["value"]}),
     nested({"value": 1}, lambda inner: {"value": 2, "left": {"value": 3}, "right": inner}), 5),
    (recursive({"anyOf": [{"type": "number"}, {"$ref": "#/$defs/operation"}]}, operation={
        "type": "object", "required": ["op", "a", "b"],
        "properties": {"op": {"enum": ["+", "*"]}, "a": NODE, "b": NODE}}),
     nested(1.5, lambda inner: {"op": "*", "a": inner, "b": 2}), 7),
    ({"type": "object", "additionalProperties": {"$ref": "#"}},
     nested({}, lambda inner: {"a": {}, "b": inner}), 7),
    ({"type": "object"}, nested({}, lambda inner: {"a": 1, "b": inner}), 4),
    ({}, nested([], lambda inner: [inner, None]), 4),
    ({"type": "object", "properties": {"any": True, "list": {"type": "array"}},
      "required": ["any", "list"]},
     nested({"any": 1, "list": []}, lambda inner: {"any": inner, "list": [inner]}), 2),
]


@pytest.mark.parametrize(("schema", "value", "levels"), DEPTHS, ids=range(len(DEPTHS)))
def test_recursion_goes_as_deep_as_is_said_and_no_deeper(
        schema: dict[str, Any], value: Any, levels: int) -> None:
    automaton, validator = of(schema), jsonschema.Draft202012Validator(schema)
    for depth in range(1, levels + 1):
        assert takes(automaton, json.dumps(value(depth), ensure_ascii=False))
    assert not takes(automaton, json.dumps(value(levels + 1), ensure_ascii=False))
    found = texts(automaton, 20)
    assert len(set(found)) > 1
    for text in found:
        validator.validate(json.loads(text))


def test_what_is_too_deep_is_left_out_and_what_needs_it_with_it() -> None:
    schema = {"type": "object", "properties": {
        "one": {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}]},
        "two": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "three": {"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 2},
        "four": {"type": "object", "properties": {"in": {"$ref": "#"}}, "required": ["in"]}}}
    automaton, validator = of(schema), jsonschema.Draft202012Validator(schema)
    for value in ({"one": [None, {}], "two": [{}, {}]}, {"three": [{}, {"three": None}]},
                  {"four": {"in": {"one": []}}}):
        validator.validate(value)
        assert takes(automaton, json.dumps(value))
    for text in texts(automaton, 30):
        validator.validate(json.loads(text))


PARTS = schemas_of(leaves | st.sampled_from([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"},
                                            {"$ref": "#"}]))
RECURSIVE = st.builds(lambda root, one, other: {
    "type": "object", "properties": {"r": root, "s": {"$ref": "#/$defs/a"}},
    "$defs": {"a": one, "b": other}}, PARTS, PARTS, PARTS)


def check_recursive_schema(schema: dict[str, Any], seed: int) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    try:
        found = texts(of(schema), 10, seed, free_tokens=20)
    except ConfigError as error:
        assert re.search("a recursion that can end|an automaton within",
                         str(error))
        return
    for text in found:
        try:
            validator.validate(json.loads(text))
        except RecursionError:
            assume(False)  # a reference to itself with nothing between, which the package follows


@settings(max_examples=5, deadline=None)
@given(RECURSIVE, st.integers(0, 99))
def test_texts_of_random_recursive_schemas_are_valid(schema: dict[str, Any], seed: int) -> None:
    check_recursive_schema(schema, seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(RECURSIVE, st.integers(0, 99))
def test_texts_of_many_random_recursive_schemas_are_valid(
        schema: dict[str, Any], seed: int) -> None:
    check_recursive_schema(schema, seed)
