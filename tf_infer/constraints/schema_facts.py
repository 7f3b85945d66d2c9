"""What is known of the values that are valid against a JSON Schema: which exclude each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def written(value: Any) -> str:
    """Return a value as JSON, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_of(value: Any, kinds: Sequence[str]) -> bool:
    """Return whether a value, as `json` reads it, is of one of some types."""
    found = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null",
             int: "integer", float: "number"}[type(value)]
    whole = found == "number" and value.is_integer()
    return found in kinds or (found == "integer" and "number" in kinds) or (
        whole and "integer" in kinds)


class Facts(NamedTuple):
    """What is known of the values that are valid against a schema.

    Attributes:
        constants: all of them, as JSON; None where these are not listed.
        types: theirs; None for any.
        required: the constants of the properties that an object must have, where it lists them.
    """

    constants: set[str] | None
    types: set[str] | None
    required: dict[str, set[str]]


def facts(schema: dict[str, Any]) -> Facts:
    """Return what a schema says of its values; of what it does not say nothing is known."""
    parts = {name: schema.get("properties", {}).get(name) for name in schema.get("required", ())}
    listed = {name: _constants(part) for name, part in parts.items() if isinstance(part, dict)}
    return Facts(_constants(schema), _types(schema),
                  {name: values for name, values in listed.items() if values is not None})


def exclusive(one: Facts, other: Facts) -> bool:
    """Return whether no value is valid against both, as far as types and constants say."""
    if one.constants is not None and other.constants is not None:
        return one.constants.isdisjoint(other.constants)
    if one.types is not None and other.types is not None and one.types.isdisjoint(other.types):
        return True
    if (one.types, other.types) != ({"object"}, {"object"}):
        return False
    return any(one.required[name].isdisjoint(other.required[name])
               for name in one.required.keys() & other.required.keys())


def _constants(schema: dict[str, Any]) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    # 1 and 1.0 are the same value
    return None if not isinstance(values, list) else {
        written(int(v) if isinstance(v, float) and v.is_integer() else v) for v in values}


def _types(schema: dict[str, Any]) -> set[str] | None:
    kinds = schema.get("type")
    if kinds is None:
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        kinds = [kind for value in values for kind in TYPES if is_of(value, [kind])
                 ] if isinstance(values, list) else None
    if kinds is None:
        return None  # without a type, values of every other type are valid
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return found | {"integer"} if "number" in found else found
