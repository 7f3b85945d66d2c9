"""What a server may be sent by mistake or malice: messages, bodies and connections, by a seed.

benchmarks/soak.py sends them. Each REST case is the bytes of a whole connection and how it ends.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ANSWER_S = 20.0


class Connection(NamedTuple):
    """One connection of somebody hostile.

    Attributes:
        kind: in the report.
        data: what is sent.
        pause_s: between two pieces of `data`; 0 sends it at once.
        ending: "wait" for an answer, "half" closes the sending side and then waits, "reset" or
            "close" without reading.
    """

    kind: str
    data: bytes
    pause_s: float = 0.0
    ending: str = "wait"


# ---------------------------------------------------------------------------- gRPC messages


def grpc_message(draw: random.Random, whole: bytes) -> tuple[str, bytes]:
    """Return a kind and the bytes of a request that is none, made of one that is."""
    kind = draw.choice(("random", "cut", "flipped", "huge length", "deep", "long field", "shapes"))
    if kind == "random":
        return kind, draw.randbytes(draw.randrange(400))
    if kind == "cut":
        return kind, whole[:draw.randrange(1, len(whole))]
    if kind == "flipped":
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return kind, bytes(data)
    if kind == "huge length":  # field 1, 2**63 bytes
        return kind, whole + b"\x0a" + b"\xff" * 9 + b"\x01"
    if kind == "deep":  # groups within groups
        return kind, b"\x0b" * draw.randrange(100, 20_000)
    if kind == "long field":
        return kind, whole + b"\x7a" + _varint(50_000) + b"x" * 50_000
    return kind, _shapes(draw)


def _shapes(draw: random.Random) -> bytes:
    """Return a Predict whose tensor's shape and numbers do not go together."""
    from tf_infer.wire import serving_pb2

    request = serving_pb2.PredictRequest()
    request.model_spec.name = "bag"
    tensor = request.inputs[draw.choice(("text", "x", "", "\0"))]
    tensor.dtype = draw.randrange(0, 30)
    for _ in range(draw.randrange(0, 6)):
        tensor.tensor_shape.dim.add(size=draw.choice((-2, -1, 0, 1, 3, 2**31, 2**62)))
    tensor.tensor_shape.unknown_rank = draw.random() < 0.1
    tensor.float_val.extend([draw.random()] * draw.randrange(4))
    tensor.string_val.extend([b"x"] * draw.randrange(4))
    tensor.tensor_content = draw.randbytes(draw.randrange(20))
    data: bytes = request.SerializeToString()
    return data


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


# ---------------------------------------------------------------------------- connections


def rest_connection(draw: random.Random, path: str) -> Connection:
    """Return a hostile connection to the REST port."""
    make = draw.choice(_REST)
    return make(draw, path)


def _post(path: str, body: bytes, *, length: int | None = None, head: bytes = b"") -> bytes:
    size = len(body) if length is None else length
    return (f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
            f"Content-Length: {size}\r\n").encode() + head + b"\r\n" + body


def _noise(draw: random.Random, path: str) -> Connection:
    return Connection("random bytes", draw.randbytes(draw.randrange(1, 600)), ending="half")


def _noise_body(draw: random.Random, path: str) -> Connection:
    return Connection("random body", _post(path, draw.randbytes(draw.randrange(600))))


def _deep(draw: random.Random, path: str) -> Connection:
    depth = draw.randrange(1_000, 100_000)
    return Connection("deep JSON", _post(path, b'{"instances":' + b"[" * depth + b"]" * depth
                                         + b"}"))


def _numbers(draw: random.Random, path: str) -> Connection:
    number = draw.choice((b"1e999", b"-1e999", b"9" * 5_000, b"1" * 400 + b".5", b"NaN",
                          b"Infinity", b"0x10", b"1e-999", b"9223372036854775808"))
    return Connection("huge numbers", _post(path, b'{"instances":[' + number + b"]}"))


def _wrong_json(draw: random.Random, path: str) -> Connection:
    body: object = draw.choice((
        {}, [], None, "x", {"instances": {}}, {"instances": [[["a"]], [1]]}, {"inputs": None},
        {"instances": [{"text": {"b64": "%%"}}]}, {"instances": ["a"] * 2, "inputs": ["a"]},
        {"instances": [{"no": "such"}]}, {"signature_name": 7, "instances": ["a"]}))
    return Connection("wrong JSON", _post(path, json.dumps(body).encode()))


def _cut(draw: random.Random, path: str) -> Connection:
    body = b'{"instances": ["where is my parcel"]}'
    return Connection("cut body", _post(path, body[:draw.randrange(len(body))], length=len(body)),
                      ending=draw.choice(("half", "close", "reset")))


def _slow(draw: random.Random, path: str) -> Connection:
    return Connection("slow", _post(path, b'{"instances": ["x"]}')[:draw.randrange(20, 120)],
                      pause_s=0.02, ending=draw.choice(("close", "reset", "half")))


def _heads(draw: random.Random, path: str) -> Connection:
    head = draw.choice((b"A" * 20_000 + b": b\r\n", b"Transfer-Encoding: chunked\r\n",
                        b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
                        b"No colon\r\n", b"\0: \0\r\n", b"Expect: 100-continue\r\n",
                        b"Content-Encoding: gzip\r\n"))
    return Connection("odd headers", _post(path, b'{"instances": ["x"]}', head=head), ending="half")


def _targets(draw: random.Random, path: str) -> Connection:
    target = draw.choice(("/", "*", "/v1/models/" + "a" * 5_000, "/v1/models/%00:predict",
                          "/v1/models/bag/versions/99999999999999999999", "http://x/v1", "/../.."))
    verb = draw.choice(("GET", "POST", "DELETE", "BREW", "OPTIONS"))
    return Connection("odd targets", f"{verb} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 0"
                      "\r\nConnection: close\r\n\r\n".encode())


_REST: tuple[Callable[[random.Random, str], Connection], ...] = (
    _noise, _noise_body, _deep, _numbers, _wrong_json, _cut, _slow, _heads, _targets)


def grpc_connection(draw: random.Random) -> Connection:
    """Return a hostile connection to the gRPC port."""
    kind = draw.choice(("noise", "preface and noise", "half preface", "frames", "HTTP/1.1"))
    if kind == "noise":
        data = draw.randbytes(draw.randrange(1, 600))
    elif kind == "preface and noise":
        data = PREFACE + draw.randbytes(draw.randrange(1, 600))
    elif kind == "half preface":
        data = PREFACE[:draw.randrange(1, len(PREFACE))]
    elif kind == "HTTP/1.1":
        data = b"GET / HTTP/1.1\r\n\r\n"
    else:
        data = PREFACE + b"".join(
            struct.pack(">I", size)[1:] + bytes([draw.randrange(12), draw.randrange(256)])
            + struct.pack(">I", draw.randrange(2**31)) + draw.randbytes(size)
            for size in (draw.randrange(0, 60) for _ in range(draw.randrange(1, 8))))
    return Connection(f"raw: {kind}", data, ending=draw.choice(("half", "close", "reset")))


def play(port: int, one: Connection) -> str:
    """Open a connection, send, end it; return the status of HTTP, "closed", or "no answer"."""
    with socket.create_connection(("localhost", port), timeout=ANSWER_S) as made:
        with suppress(OSError):  # the server may close first
            if one.pause_s:
                for place in range(0, len(one.data), 8):
                    made.sendall(one.data[place:place + 8])
                    time.sleep(one.pause_s)
            else:
                made.sendall(one.data)
            if one.ending == "half":
                made.shutdown(socket.SHUT_WR)
        if one.ending == "reset":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if one.ending in ("reset", "close"):
            return "left"
        try:
            answer = made.recv(64)
        except TimeoutError:
            return "no answer"
        except OSError:
            return "closed"
    return answer[9:12].decode() if answer.startswith(b"HTTP/1") else "closed"
