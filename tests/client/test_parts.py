"""The client's parts that need no server: retry plan, addresses, credentials, imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_infer
from tf_infer.client.credentials import INSECURE, Credentials, bearer, tls
from tf_infer.client.retry import RetryPolicy, plan_retry
from tf_infer.client.transport import DOWN_S, Addresses, ChannelOptions, parse_addresses
from tf_infer.errors import Code, ConfigError

ROOT = Path(__file__).resolve().parents[2]


def plan(**changes: Any) -> float | None:
    arguments: dict[str, Any] = {
        "attempt": 1, "code": Code.UNAVAILABLE, "elapsed_s": 0.0, "timeout_s": 10.0,
        "elsewhere": False, "draw": 0.0}
    policy = changes.pop("policy", RetryPolicy(attempts=5, initial_backoff_s=0.1, multiplier=2,
                                               max_backoff_s=0.5, jitter=0.5))
    return plan_retry(policy, **(arguments | changes))


def test_waits_grow_up_to_their_limit() -> None:
    assert [plan(attempt=n) for n in (1, 2, 3, 4, 5)] == [0.1, 0.2, 0.4, 0.5, None]


def test_chance_shortens_a_wait_by_its_share() -> None:
    assert plan(draw=1.0) == pytest.approx(0.05)


def test_another_address_is_asked_at_once_but_only_when_this_one_is_gone() -> None:
    assert plan(elsewhere=True) == 0.0
    assert plan(elsewhere=True, code=Code.RESOURCE_EXHAUSTED) == 0.1


def test_no_wait_ends_behind_the_deadline() -> None:
    assert plan(elapsed_s=9.95) is None
    assert plan(elapsed_s=9.85) == 0.1
    assert plan(elapsed_s=1e9, timeout_s=None) == 0.1


@given(attempt=st.integers(1, 50), elapsed=st.floats(0, 100), timeout=st.floats(0.001, 100),
       draw=st.floats(0, 1), code=st.sampled_from(list(Code)))
def test_a_planned_wait_is_short_and_inside_the_deadline(
        attempt: int, elapsed: float, timeout: float, draw: float, code: Code) -> None:
    wait = plan(policy=RetryPolicy(attempts=20), attempt=attempt, elapsed_s=elapsed,
                timeout_s=timeout, draw=draw, code=code)
    if code not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED) or attempt >= 20:
        assert wait is None
    elif wait is not None:
        assert 0 <= wait <= 2.0
        assert elapsed + wait < timeout


@pytest.mark.parametrize("arguments", [
    {"attempts": 0}, {"initial_backoff_s": -1}, {"multiplier": 0.5}, {"jitter": 2},
    {"initial_backoff_s": 5, "max_backoff_s": 1}])
def test_a_bad_policy_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"RetryPolicy\."):
        RetryPolicy(**arguments)


@pytest.mark.parametrize(("target", "expected"), [
    ("localhost:8500", ("localhost:8500",)), ("a:1,b:2", ("a:1", "b:2")),
    (["a:1", " b:2 "], ("a:1", "b:2")), ("[::1]:8500", ("[::1]:8500",)),
    ("dns:///models.example:8500", ("dns:///models.example:8500",)),
    ("unix:/run/m.sock", ("unix:/run/m.sock",)), ("ipv4:1.2.3.4:1,1.2.3.5:1",
                                                  ("ipv4:1.2.3.4:1,1.2.3.5:1",))])
def test_addresses_that_grpc_understands(target: Any, expected: tuple[str, ...]) -> None:
    assert parse_addresses(target) == expected


@pytest.mark.parametrize(("target", "message"), [
    ("", "expected host:port"), ([], "at least one"), ("localhost", "expected host:port"),
    ("http://localhost:8501", "Write 'localhost:8501'"), ("localhost:0", "a port from 1"),
    ("localhost:99999", "a port from 1"), ("a b:1", "expected host:port"),
    ("user@host:1", "expected host:port"), ([5], "expected text"), ("a:1,,b:2", "host:port")])
def test_other_addresses_are_refused_with_the_fix(target: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_addresses(target)


def test_addresses_take_turns_and_those_that_failed_rest() -> None:
    addresses = Addresses(3)
    assert [addresses.pick(10.0) for _ in range(4)] == [0, 1, 2, 0]
    addresses.mark_down(1, 10.0)
    assert addresses.up(10.0) == 2
    assert {addresses.pick(10.0) for _ in range(6)} == {0, 2}
    assert 1 in {addresses.pick(10.0 + DOWN_S) for _ in range(3)}
    for index in range(3):
        addresses.mark_down(index, 20.0)
    assert addresses.up(20.0) == 0
    assert {addresses.pick(20.0) for _ in range(3)} == {0, 1, 2}


def test_secrets_do_not_show() -> None:
    pem = b"-----BEGIN KEY-----\nsecret"
    shown = repr(tls(ca=pem, key=pem, certificate=pem, token="s3cr3t"))
    assert "secret" not in shown.replace("-----BEGIN KEY-----\\nsecret", "", 1)  # the ca is public
    assert "s3cr3t" not in shown


@pytest.mark.parametrize(("build", "message"), [
    (lambda: bearer("abc"), "expected TLS under a token"),
    (lambda: bearer("a b", allow_plaintext=True), "printable ASCII without spaces, got 3 other"),
    (lambda: tls(token="a\nb"), "printable ASCII"), (lambda: tls(token=""), "printable ASCII"),
    (lambda: tls(key=b"-----BEGIN X"), "key and certificate, or neither"),
    (lambda: tls(ca="/nowhere/ca.pem"), "/nowhere/ca.pem cannot be read: No such file"),
    (lambda: tls(ca=b"junk"), "expected PEM"),
    (lambda: Credentials(ca=b"x"), "no certificates without TLS")])
def test_bad_credentials_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build()
    assert "a b" not in str(caught.value)
    assert Credentials() == INSECURE


@pytest.mark.parametrize("arguments", [
    {"compression": "zip"}, {"keepalive_s": 0}, {"connect_timeout_s": -1},
    {"connect_timeout_s": float("inf")}, {"keepalive_s": 1e9}, {"keepalive_s": float("nan")}])
def test_bad_channel_options_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ChannelOptions\."):
        ChannelOptions(**arguments)


def test_importing_the_client_loads_no_tensorflow() -> None:
    code = ("import sys, tf_infer, tf_infer.client\n"
            "print([m for m in sys.modules if m.split('.')[0] in "
            "('tensorflow', 'tensorflow_serving', 'keras', 'keras_hub')])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    for name in tf_infer.__all__:
        assert getattr(tf_infer, name) is not None
    assert not hasattr(tf_infer, "nothing")
