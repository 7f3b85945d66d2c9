"""The model file of the sentencepiece library: read it, and write variants of it.

The file is one protocol buffer message, `ModelProto` of sentencepiece_model.proto. Only the fields
below are read; the rest is kept as bytes, so that a variant differs only where it should.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Union

from tf_infer.errors import CheckpointError

SPACE = "\u2581"  # how the library writes a space inside pieces
UNKNOWN_PENALTY = 10.0  # kUnkPenalty of unigram_model.cc, in nats


class PieceKind(IntEnum):
    """`ModelProto.SentencePiece.Type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    """`TrainerSpec.ModelType`."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """What a `.model` file says.

    Attributes:
        pieces: the vocabulary.
        kind: which algorithm splits text.
        byte_fallback: an unknown character becomes the pieces of its bytes.
        space_is_suffix: the space mark stands behind a word instead of before it.
        start_piece, end_piece, pad_piece: names of control pieces, which may be absent.
        unknown_surface: what an unknown id decodes to.
        charsmap: compiled normalisation rules; empty for none.
        dummy_prefix, remove_extra_spaces, escape_spaces: the other normalisation switches.
        trainer, normalizer: the two messages as they stood in the file.
    """

    pieces: tuple[Piece, ...]
    kind: ModelKind = ModelKind.UNIGRAM
    byte_fallback: bool = False
    space_is_suffix: bool = False
    start_piece: str = "<s>"
    end_piece: str = "</s>"
    pad_piece: str = "<pad>"
    unknown_surface: str = " \u2047 "
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    escape_spaces: bool = True
    trainer: bytes = b""
    normalizer: bytes = b""

    def control(self, text: str) -> int | None:
        """Return the id of the control piece `text`, or None."""
        return next((i for i, piece in enumerate(self.pieces)
                     if piece.kind == PieceKind.CONTROL and piece.text == text), None)

    def unknown(self) -> int:
        """Return the id of the unknown piece."""
        return next(i for i, p in enumerate(self.pieces) if p.kind == PieceKind.UNKNOWN)

    def variant(self, pieces: Sequence[Piece], *, kind: ModelKind, byte_fallback: bool = False,
                space_is_suffix: bool | None = None) -> ModelFile:
        """Return a model with other pieces and the same normalisation."""
        return replace(
            self, pieces=tuple(pieces), kind=kind, byte_fallback=byte_fallback,
            space_is_suffix=self.space_is_suffix if space_is_suffix is None else space_is_suffix)

    def without_normalization(self) -> ModelFile:
        """Return the model that takes text as it is."""
        return replace(self, charsmap=b"", dummy_prefix=False, remove_extra_spaces=False,
                       escape_spaces=False, space_is_suffix=False)

    def to_bytes(self) -> bytes:
        """Return the file. Fields set here stand behind the bytes that were read, and win.

        The rules are never empty: the fast op refuses such a file, and the library prints a line on
        stderr for each time it is loaded.
        """
        trainer = (self.trainer + _number(3, self.kind) + _number(24, self.space_is_suffix)
                   + _number(35, self.byte_fallback) + _number(40, self.unknown()))
        normalizer = (self.normalizer + _text(2, self.charsmap or _NO_RULES)
                      + _number(3, self.dummy_prefix) + _number(4, self.remove_extra_spaces)
                      + _number(5, self.escape_spaces))
        pieces = b"".join(
            _text(1, _text(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
                  + _number(3, piece.kind)) for piece in self.pieces)
        return pieces + _text(2, trainer) + _text(3, normalizer)


def read_model(data: bytes, *, where: str) -> ModelFile:
    """Read the bytes of a `.model` file.

    Args:
        data: the file.
        where: its name, for messages.

    Raises:
        CheckpointError: the bytes are no sentencepiece model, or end too early.
    """
    try:
        model = _read_model(data)
        kinds = [piece.kind for piece in model.pieces]
        if kinds.count(PieceKind.UNKNOWN) != 1:
            raise ValueError("no unknown piece")
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{where}: expected a sentencepiece model file, got {len(data)} bytes that are none "
            "(cut short?). Copy the file again.") from error
    return model


# A double-array trie that holds no rule: the root points at 256 units that match no byte.
_NO_RULES = struct.pack("<I", 2048) + struct.pack(
    "<512I", 256 << 10, *([0x80000000] * 511)) + b"\0"


def no_rules() -> bytes:
    """Return a `charsmap` without rules, for readers that do not take an empty one."""
    return _NO_RULES


def ascii_rules(charsmap: bytes) -> list[bytes]:
    """Return what the rules replace that is all ASCII, without U+0000."""
    if not charsmap:
        return []
    units = _units(charsmap)
    found: list[bytes] = []
    open_nodes = [(0, b"")]
    while open_nodes:
        node, key = open_nodes.pop()
        for char in range(1, 0x80):
            child = node ^ _offset(units[node]) ^ char
            if child < len(units) and units[child] & 0x800000FF == char:
                open_nodes.append((child, key + bytes([char])))
                if units[child] >> 8 & 1:
                    found.append(key + bytes([char]))
    return found


def maps_to_space(charsmap: bytes, char: int) -> bool:
    """Return whether the rules turn the ASCII character `char` into a space."""
    if not charsmap:
        return False
    units = _units(charsmap)
    place = _offset(units[0]) ^ char
    unit = units[place] if place < len(units) else 0x80000000
    if unit & 0x800000FF != char or not unit >> 8 & 1:
        return False
    begin = 4 + 4 * len(units) + (units[place ^ _offset(unit)] & 0x7FFFFFFF)
    return charsmap[begin:charsmap.index(b"\0", begin)] == b" "


def _units(charsmap: bytes) -> tuple[int, ...]:
    """Return the units of the double-array trie (darts-clone) at the start of the rules."""
    (size,) = struct.unpack_from("<I", charsmap)
    return struct.unpack_from(f"<{size // 4}I", charsmap, 4)


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _read_model(data: bytes) -> ModelFile:
    pieces: list[Piece] = []
    trainer = normalizer = b""
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_read_piece(_bytes(value)))
        elif number == 2:
            trainer += _bytes(value)
        elif number == 3:
            normalizer += _bytes(value)
    said, rules = dict(_fields(trainer)), dict(_fields(normalizer))

    def name(number: int, default: str) -> str:
        return _bytes(said.get(number, default.encode())).decode()

    return ModelFile(
        pieces=tuple(pieces), kind=ModelKind(int(said.get(3, 1))),
        byte_fallback=bool(said.get(35, 0)), space_is_suffix=bool(said.get(24, 0)),
        start_piece=name(46, "<s>"), end_piece=name(47, "</s>"), pad_piece=name(48, "<pad>"),
        unknown_surface=name(44, " \u2047 "), charsmap=_bytes(rules.get(2, b"")),
        dummy_prefix=bool(rules.get(3, 1)), remove_extra_spaces=bool(rules.get(4, 1)),
        escape_spaces=bool(rules.get(5, 1)), trainer=trainer, normalizer=normalizer)


def _read_piece(data: bytes) -> Piece:
    found = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(found.get(2, bytes(4))))
    return Piece(text=_bytes(found.get(1, b"")).decode(), score=score,
                 kind=PieceKind(int(found.get(3, 1))))


Value = Union[int, bytes]


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value) of a message: int for varints, else the bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("unknown wire type")
        if place + size > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[place:place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("expected bytes")
    return value


def _number(field: int, value: int) -> bytes:
    return _encode_varint(field << 3) + _encode_varint(int(value))


def _text(field: int, value: bytes) -> bytes:
    return _encode_varint(field << 3 | 2) + _encode_varint(len(value)) + value


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
