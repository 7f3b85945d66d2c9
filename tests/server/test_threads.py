"""The thread pool: small while work flows, larger when all threads are held, small again."""

from __future__ import annotations

import threading

import pytest

from tf_infer.server.threads import ElasticExecutor

WAIT_S = 20.0


def until(pool: ElasticExecutor, threads: int) -> None:
    waited = threading.Event()
    for _ in range(2000):
        if pool.threads == threads:
            return
        waited.wait(0.01)
    raise AssertionError(f"{pool.threads} threads instead of {threads}")


def test_held_threads_do_not_hold_up_others_and_the_pool_shrinks_again() -> None:
    pool, leave = ElasticExecutor(2, 16, patience_s=0.01), threading.Event()
    held = [pool.submit(leave.wait, WAIT_S) for _ in range(10)]
    assert pool.submit(lambda: "quick").result(WAIT_S) == "quick"
    assert pool.threads >= 10
    leave.set()
    assert all(future.result(WAIT_S) for future in held)
    until(pool, 2)
    pool.shutdown()


def test_the_pool_stays_small_while_work_flows() -> None:
    pool = ElasticExecutor(2, 16, patience_s=5.0)
    assert sorted(future.result(WAIT_S) for future in [
        pool.submit(lambda n=n: n) for n in range(500)]) == list(range(500))
    assert pool.threads <= 2
    pool.shutdown()
    until(pool, 0)


def test_there_are_never_more_than_the_limit() -> None:
    pool, leave = ElasticExecutor(1, 3, patience_s=0.005), threading.Event()
    held = [pool.submit(leave.wait, WAIT_S) for _ in range(6)]
    until(pool, 3)
    assert not leave.wait(0.1)
    assert pool.threads == 3
    leave.set()
    assert all(future.result(WAIT_S) for future in held)
    pool.shutdown()


def test_a_machine_that_gives_no_more_threads_for_a_while_is_asked_again(
        monkeypatch: pytest.MonkeyPatch) -> None:
    pool, leave = ElasticExecutor(1, 8, patience_s=0.01, name="few"), threading.Event()
    held = pool.submit(leave.wait, WAIT_S)
    start, refused, asked = threading.Thread.start, threading.Event(), threading.Event()

    def refusing(thread: threading.Thread) -> None:
        if not refused.is_set():
            asked.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    waiting = pool.submit(lambda: "done")
    assert asked.wait(WAIT_S)
    refused.set()
    assert waiting.result(WAIT_S) == "done"
    leave.set()
    assert held.result(WAIT_S)
    pool.shutdown()


def test_errors_come_back_and_a_closed_pool_refuses() -> None:
    pool = ElasticExecutor(1, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(WAIT_S)
    assert pool.submit(lambda: 1).result(WAIT_S) == 1
    pool.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(print)


def test_work_that_waits_can_be_cancelled_at_the_end() -> None:
    pool, started, leave = ElasticExecutor(1, 1), threading.Event(), threading.Event()

    def hold() -> bool:
        started.set()
        return leave.wait(WAIT_S)

    held, waiting = pool.submit(hold), pool.submit(print)
    assert started.wait(WAIT_S)
    pool.shutdown(wait=False, cancel_futures=True)
    leave.set()
    assert held.result(WAIT_S)
    assert waiting.cancelled()
