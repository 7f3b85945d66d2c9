"""JSON Schema -> the expression of the JSON texts that are valid against it, and of no others.

What is honoured is listed in docs/constraints.md. A keyword that is not, or that would be honoured
only in part, is refused with its path. (The library's own translation of schemas is not used: it
ignores `minimum`, `multipleOf`, `uniqueItems`, `minProperties`, `if` and names in `required` that
have no property, joins the parts of `allOf`, puts `pattern` and names into strings without escaping
them, and cuts recursion with texts that are not valid.)

Of the texts that are valid these are written: properties in the order of the schema, none that the
schema does not name unless it names none, at most one space behind a comma or a colon and no other
white space, strings without \\u escapes, numbers of at most 16 digits, recursion of at most LEVELS
levels: an automaton cannot count further than it has states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from tf_infer.constraints.decimals import Bound, decimal_range
from tf_infer.constraints.integers import integer_range
from tf_infer.constraints.patterns import LAST, in_json_string, json_characters, literal
from tf_infer.constraints.schema_facts import exclusive, facts, is_of, written
from tf_infer.errors import ConfigError

MAX_CHARS = 400_000     # of an expression
MAX_JSON_CHARS = 200_000
MAX_EXCLUSIVE = 256     # schemas of one oneOf: each is held against each
LEVELS = 12             # of a part that refers to itself, the outermost counted
DEEP_CHARS = 30_000     # of an expression with more than two levels: each may double it
MAX_PARTS = 100_000     # read, each as often as it is referred to
COMMA, COLON = ",[ ]?", ":[ ]?"
MAX_INTEGER = 10**16 - 1
NUMBER = r"(?:-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,16})?(?:[eE][+-]?[0-9]{1,2})?)"
BOOLEAN = "(?:true|false)"
ANY = "any value"       # among the references that a part is inside
_DAY = (r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
        r"|02-(?:0[1-9]|1[0-9]|2[0-8]))")
_DATE = rf"(?:[1-9][0-9]{{3}}-{_DAY})"
_TIME = (r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
         r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]))")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {"date": _DATE, "time": _TIME, "date-time": f"(?:{_DATE}T{_TIME})",
           "uuid": "(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
           "ipv4": rf"(?:{_OCTET}(?:\.{_OCTET}){{3}})"}

ANNOTATIONS = {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly",
               "writeOnly", "discriminator", "$schema", "$defs", "definitions"}
DIALECTS = ("https://json-schema.org/draft/2020-12/schema",
            "https://json-schema.org/draft/2019-09/schema",
            "http://json-schema.org/draft-07/schema")
BY_TYPE: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(), "null": set()}
COMBINED = {"anyOf", "oneOf", "allOf", "$ref", "enum", "const"}


def expression(schema: str, *, where: str = "json_schema") -> str:
    """Return the expression of a schema, for `byte_automaton.from_pattern`.

    Raises:
        ConfigError: it is no JSON (with line and column), is no schema, is too large, or holds what
            cannot be honoured; with the path in the schema.
    """
    if len(schema) > MAX_JSON_CHARS:
        raise ConfigError(f"{where}: expected at most {MAX_JSON_CHARS} characters, got "
                          f"{len(schema)}. Make it smaller.")
    try:
        root = json.loads(schema, parse_constant=float)
        json.dumps(root, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: expected JSON, got an error at line {error.lineno}, column "
                          f"{error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: expected JSON, got numbers too large, halves of characters, "
                          "or lists too deep to read.") from error
    try:
        return _Schema(root, where).whole()
    except RecursionError as error:
        raise ConfigError(f"{where}: expected a schema that can be read, got one nested too deep."
                          ) from error


class _TooLarge(ConfigError):
    """An expression is too large with as many levels of recursion as it was to have."""


class _Schema:
    """Writes the expressions of the parts of one schema."""

    def __init__(self, root: Any, where: str) -> None:
        self._root, self._where = root, where
        self._levels, self._parts = 2, 0
        self._cut = ""  # path of the last reference that was not followed any more
        dialect = root.get("$schema", DIALECTS[0]) if isinstance(root, dict) else DIALECTS[0]
        if str(dialect).rstrip("#") not in DIALECTS:
            raise self._fault("#/$schema", f"one of {', '.join(DIALECTS)}", "another dialect")
        self._newest = str(dialect).rstrip("#") == DIALECTS[0]

    def whole(self) -> str:
        """Return the expression of all, with as many levels of recursion, 2 to LEVELS, as fit."""
        deepest = ""
        for levels in range(2, LEVELS + 1):
            self._levels = levels
            try:
                found = self._of(self._root, "#", ("#",))
            except (_TooLarge, RecursionError):
                if not deepest:
                    raise
                break
            if found and not self._cut:
                return found
            if found and deepest and len(found) > DEEP_CHARS:
                break
            deepest = found or deepest
        if not deepest:
            raise self._fault(self._cut, f"a recursion that can end within {LEVELS} levels",
                              "one that cannot: let what refers back be left out, be null, or be "
                              "an empty list")
        return deepest

    def _of(self, schema: Any, path: str, trail: tuple[str, ...]) -> str | None:
        """Return the expression of a part at `path`; `trail` holds the references it is inside.

        None: every text of it has more levels.
        """
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self._fault(path, f"at most {MAX_PARTS} parts, each counted as often as it is "
                              "referred to", "more", kind=_TooLarge)
        schema = {} if schema is True else schema
        if not isinstance(schema, dict):
            raise self._fault(path, "an object that says a type", "a schema of another kind")
        combined = [name for name in COMBINED if name in schema]
        rest = sorted(set(schema) - ANNOTATIONS - set(combined))
        if not combined and not rest:
            return self._short(self._anything(path, trail), path)
        if combined:
            if len(combined) > 1:
                raise self._fault(path, "one of anyOf, oneOf, allOf, $ref, enum, const",
                                  f"{sorted(combined)} together")
            if rest and not (combined[0] in ("enum", "const") and rest == ["type"]):
                raise self._fault(f"{path}/{rest[0]}", f"no other keyword beside {combined[0]}",
                                  "one")
            return self._short(self._combined(combined[0], schema, path, trail), path)
        kinds = self._kinds(schema, path)
        allowed = set().union(*(BY_TYPE[kind] for kind in kinds)) | {"type"}
        wrong = [name for name in rest if name not in allowed]
        if wrong:
            raise self._fault(f"{path}/{_escaped(wrong[0])}",
                              f"keywords that are honoured for type {' or '.join(kinds)} "
                              f"({', '.join(sorted(allowed))})", "another keyword")
        writers: Mapping[str, Callable[[dict[str, Any], str, tuple[str, ...]], str | None]] = {
            "object": self._object, "array": self._array, "string": self._string,
            "integer": self._integer, "number": self._number,
            "boolean": lambda *_: BOOLEAN, "null": lambda *_: "null"}
        return self._short(_either([writers[kind](schema, path, trail) for kind in kinds]), path)

    def _fault(self, path: str, expected: str, got: str, kind: type[ConfigError] = ConfigError
               ) -> ConfigError:
        return kind(f"{self._where}: expected {expected} at {path}, got {got}. "
                    "See docs/constraints.md for what is honoured.")

    def _short(self, text: str | None, path: str) -> str | None:
        if text and len(text) > MAX_CHARS:
            raise self._fault(path, f"a part whose expression has at most {MAX_CHARS} characters",
                              f"{len(text)}", kind=_TooLarge)
        return text

    def _kinds(self, schema: dict[str, Any], path: str) -> list[str]:
        kinds = schema.get("type")
        if kinds is None:
            kinds = [kind for kind in ("object", "array", "string") if BY_TYPE[kind] & set(schema)]
            if len(kinds) != 1:
                raise self._fault(path, "a type", "none")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not (isinstance(kinds, list) and kinds and all(
                isinstance(kind, str) and kind in BY_TYPE for kind in kinds)):
            raise self._fault(f"{path}/type", f"one or some of {', '.join(BY_TYPE)}", "others")
        return kinds

    # ------------------------------------------------------------------ combinations

    def _combined(self, name: str, schema: dict[str, Any], path: str, trail: tuple[str, ...]
                  ) -> str | None:
        value, path = schema[name], f"{path}/{name}"
        if name == "$ref":
            return self._referred(value, path, trail)
        if name == "const":
            return self._values([value], schema, path)
        if not isinstance(value, list) or not value:
            raise self._fault(path, "a list with something in it", "none")
        if name == "enum":
            return self._values(value, schema, path)
        if name == "allOf" and len(value) > 1:
            raise self._fault(path, "a list of one schema", f"{len(value)}")
        if name == "oneOf" and len(value) > MAX_EXCLUSIVE:
            raise self._fault(path, f"at most {MAX_EXCLUSIVE} schemas (or anyOf)", f"{len(value)}")
        options = [self._of(one, f"{path}/{i}", trail) for i, one in enumerate(value)]
        if name == "oneOf":
            self._check_exclusive(value, path)
        return _either(options)

    def _values(self, values: Sequence[Any], schema: dict[str, Any], path: str) -> str | None:
        kinds = self._kinds(schema, path.rsplit("/", 1)[0]) if "type" in schema else list(BY_TYPE)
        fitting = [value for value in values if is_of(value, kinds)]
        if not fitting:
            raise self._fault(path, "a value of the type beside it", "none")
        return _either([_constant(value) for value in fitting])

    def _referred(self, value: Any, path: str, trail: tuple[str, ...]) -> str | None:
        if trail.count(value) >= self._levels:
            self._cut = path
            return None
        return self._of(self._target(value, path), value, (*trail, value))

    def _anything(self, path: str, trail: tuple[str, ...]) -> str | None:
        """Return the expression of any value: it holds itself, as a reference may."""
        if trail.count(ANY) >= self._levels:
            self._cut = path
            return None
        inner = self._anything(path, (*trail, ANY))
        return _either([f'"{_text(0, None)}"', NUMBER, BOOLEAN, "null",
                        self._row([], inner, 0, None, path), _map_of(inner)])

    def _target(self, value: Any, path: str) -> Any:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise self._fault(path, "a reference into the schema itself, such as #/$defs/name",
                              "another one")
        found = self._root
        for step in value[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise self._fault(path, "a reference to a part that is there", "another one")
        return found

    def _check_exclusive(self, options: Sequence[Any], path: str) -> None:
        """Raise unless no value can be valid against two of the schemas, as far as can be seen."""
        seen = [facts(self._resolved(option, f"{path}/{i}")) for i, option in enumerate(options)]
        for i, one in enumerate(seen):
            for j in range(i):
                if not exclusive(one, seen[j]):
                    raise self._fault(f"{path}/{i}", "a schema that excludes the others by its "
                                      "type or by a constant of a required property (or anyOf)",
                                      f"one that may hold together with number {j}")

    def _resolved(self, schema: Any, path: str) -> dict[str, Any]:
        for _ in range(20):
            if not isinstance(schema, dict):
                raise self._fault(path, "an object that says a type", "a schema of another kind")
            if "$ref" not in schema:
                return schema
            schema = self._target(schema["$ref"], path)
        raise self._fault(path, "a reference that leads somewhere", "a chain of more than 20")

    # ------------------------------------------------------------------ types

    def _object(self, schema: dict[str, Any], path: str, trail: tuple[str, ...]) -> str | None:
        properties = self._mapping(schema, "properties", path)
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._fault(f"{path}/required", "a list of names", "something else")
        for name in required:
            if name not in properties:
                raise self._fault(f"{path}/required", "names that stand in properties",
                                  f"{name!r}, which does not")
        more = schema.get("additionalProperties", True)
        if not properties:
            return self._map(more, path, trail)
        if not isinstance(more, (bool, dict)):
            raise self._fault(f"{path}/additionalProperties", "a schema", "something else")
        found = {name: self._of(part, f"{path}/properties/{_escaped(name)}", trail)
                 for name, part in properties.items()}
        if any(found[name] is None for name in required):
            return None
        parts = {name: literal(written(name)) + COLON + text
                 for name, text in found.items() if text is not None}
        return self._listed(list(parts.values()), [name in required for name in parts], path)

    def _listed(self, parts: list[str], required: list[bool], path: str) -> str:
        """Return the object of some members in order, of which some may be left out."""
        rest = ""         # the members behind, something before them
        alone = ""        # the members behind, nothing before them; "" for none of them
        may_be_empty = True
        for part, needed in zip(reversed(parts), reversed(required)):
            here = part + rest
            if needed:
                alone, may_be_empty = here, False
            else:
                alone = f"(?:{here}|{alone})" if alone else here
            rest = COMMA + part + rest if needed else f"(?:{COMMA}{part})?{rest}"
            self._short(alone, path)
        return r"\{" + (f"(?:{alone})?" if may_be_empty else alone) + r"\}"

    def _map(self, more: Any, path: str, trail: tuple[str, ...]) -> str | None:
        if more is False:
            return r"\{\}"
        return _map_of(self._of(more, f"{path}/additionalProperties", trail))

    def _array(self, schema: dict[str, Any], path: str, trail: tuple[str, ...]) -> str | None:
        low, high = self._counts(schema, "minItems", "maxItems", path)
        prefix = schema.get("prefixItems", [])
        if not isinstance(prefix, list) or (prefix and not self._newest):
            raise self._fault(f"{path}/prefixItems", "a list, in the dialect of 2020-12", "another")
        items = schema.get("items", True)
        if items is True and high is None and len(prefix) >= low and prefix:
            high = len(prefix)  # none beyond those that the schema describes
        if items is False:
            high = len(prefix) if high is None else min(high, len(prefix))
        if high is not None and low > high:
            raise self._fault(path, "a length that is possible", f"{low} items of at most {high}")
        places = [self._of(one, f"{path}/prefixItems/{i}", trail)
                  for i, one in enumerate(prefix[:high])]
        more: str | None = None
        if None not in places and (high is None or high > len(places)):
            more = self._of(items, f"{path}/items", trail)
        fixed: list[str] = []
        for place in places:
            if place is None:
                break
            fixed.append(place)
        if more is None and len(fixed) < low:
            return None
        return self._row(fixed, more, low, high, path)

    def _row(self, places: list[str], more: str | None, low: int, high: int | None, path: str
             ) -> str | None:
        """Return the array of given first items and further ones."""
        text, count = "", len(places)
        if more:
            least = max(low - count, 0)
            most = "" if high is None else str(high - count)
            if count:
                text = f"(?:{COMMA}{more}){{{least},{most}}}"
            else:
                following = f"(?:{COMMA}{more}){{{max(least - 1, 0)},{most and int(most) - 1}}}"
                text = more + following
                return rf"\[{text}\]" if low else rf"\[(?:{text})?\]"
        for i in range(count - 1, -1, -1):
            text = (COMMA if i else "") + places[i] + text
            if i >= low:
                text = f"(?:{text})?"
        return self._short(rf"\[{text}\]", path)

    def _string(self, schema: dict[str, Any], path: str, trail: tuple[str, ...]) -> str:
        bounded = "minLength" in schema or "maxLength" in schema
        said = [name for name in ("pattern", "format") if name in schema]
        if len(said) + bounded > 1:
            raise self._fault(path, "one of pattern, format and lengths", "several")
        if said == ["format"]:
            if schema["format"] not in tuple(FORMATS):
                raise self._fault(f"{path}/format", f"one of {', '.join(FORMATS)}", "another")
            return f'"{FORMATS[schema["format"]]}"'
        if said:
            where = f"{self._where} at {path}/pattern"
            if not isinstance(schema["pattern"], str):
                raise self._fault(f"{path}/pattern", "a regular expression", "something else")
            return f'"{in_json_string(schema["pattern"], where=where)}"'
        return f'"{_text(*self._counts(schema, "minLength", "maxLength", path))}"'

    def _integer(self, schema: dict[str, Any], path: str, trail: tuple[str, ...]) -> str:
        lows, highs = [-MAX_INTEGER], [MAX_INTEGER]
        for name, bounds, shift in (("minimum", lows, 0), ("exclusiveMinimum", lows, 1),
                                    ("maximum", highs, 0), ("exclusiveMaximum", highs, -1)):
            value = schema.get(name, bounds[0])
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INTEGER:
                raise self._fault(f"{path}/{name}", "a whole number of at most 16 digits",
                                  "something else")
            bounds.append(value + shift if name in schema else value)
        low, high = max(lows), min(highs)
        if low > high:
            raise self._fault(path, "a range that holds a number", f"{low} to {high}")
        return integer_range(low, high)

    def _number(self, schema: dict[str, Any], path: str, trail: tuple[str, ...]) -> str:
        lows: list[Bound] = []
        highs: list[Bound] = []
        for name, bounds, is_open in (
                ("minimum", lows, False), ("exclusiveMinimum", lows, True),
                ("maximum", highs, False), ("exclusiveMaximum", highs, True)):
            value = schema.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self._fault(f"{path}/{name}", "a number", "something else")
            if name in schema:
                bounds.append(Bound(Decimal(repr(value)), is_open))
        if not lows and not highs:
            return NUMBER
        try:
            return decimal_range(max(lows, default=None), min(
                highs, default=None, key=lambda one: (one.value, not one.open)))
        except ValueError as error:
            raise self._fault(path, str(error).removeprefix("expected "), "another") from error

    def _mapping(self, schema: dict[str, Any], name: str, path: str) -> dict[str, Any]:
        value = schema.get(name, {})
        if not isinstance(value, dict):
            raise self._fault(f"{path}/{name}", "an object", "something else")
        return value

    def _counts(self, schema: dict[str, Any], least: str, most: str, path: str
                ) -> tuple[int, int | None]:
        low, high = schema.get(least, 0), schema.get(most)
        for name, value in ((least, low), (most, high)):
            if name in schema and (type(value) is not int or not 0 <= value <= 10_000):
                raise self._fault(f"{path}/{name}", "a whole number from 0 to 10000",
                                  "something else")
        if high is not None and low > high:
            raise self._fault(path, f"{least} <= {most}", f"{low} and {high}")
        return low, high


def _either(options: Sequence[str | None]) -> str | None:
    found = [option for option in options if option is not None]
    return "(?:" + "|".join(found) + ")" if len(found) > 1 else found[0] if found else None


def _map_of(value: str | None) -> str:
    """Return the expression of objects with any names, all of whose values are alike."""
    if value is None:
        return r"\{\}"
    member = f'"{_text(0, None)}"{COLON}{value}'
    return rf"\{{(?:{member}(?:{COMMA}{member})*)?\}}"


def _text(low: int, high: int | None) -> str:
    return json_characters(((0, LAST),)) + f"{{{low},{'' if high is None else high}}}"


def _constant(value: Any) -> str:
    """Return the expression of one value, with the spaces that all others may have."""
    if isinstance(value, dict):
        parts = [literal(written(name)) + COLON + _constant(one) for name, one in value.items()]
        return r"\{" + COMMA.join(parts) + r"\}"
    if isinstance(value, list):
        return r"\[" + COMMA.join(map(_constant, value)) + r"\]"
    return literal(written(value))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
