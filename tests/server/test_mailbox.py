"""What threads tell a loop: all of it, in order, with few wake-ups."""

from __future__ import annotations

import asyncio
import threading

from tf_infer.server.mailbox import Mailbox

THREADS, CALLS = 8, 2000


def test_no_call_of_many_threads_is_lost_and_each_threads_calls_keep_their_order() -> None:
    async def told() -> list[tuple[int, int]]:
        box, seen, ended = Mailbox(asyncio.get_running_loop()), [], asyncio.Event()

        def tell(item: tuple[int, int]) -> None:
            seen.append(item)
            if len(seen) == THREADS * CALLS:
                ended.set()

        def work(name: int) -> None:
            for number in range(CALLS):
                box.put(tell, (name, number))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(THREADS)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(ended.wait(), 60)
        return seen

    seen = asyncio.run(told())
    for name in range(THREADS):
        assert [number for one, number in seen if one == name] == list(range(CALLS))


def test_the_loop_is_woken_once_for_what_comes_before_it_looks() -> None:
    async def told() -> tuple[list[int], int]:
        loop, seen, woken = asyncio.get_running_loop(), [], []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *call: woken.append(1) or wake(*call)  # type: ignore
        box = Mailbox(loop)
        for number in range(10):
            box.put(seen.append, number)
        await asyncio.sleep(0)
        first = len(woken)
        box.put(seen.append, 10)
        await asyncio.sleep(0)
        assert len(woken) == first + 1
        return seen, first

    assert asyncio.run(told()) == (list(range(11)), 1)


def test_what_is_told_to_a_loop_that_has_ended_is_forgotten() -> None:
    loop = asyncio.new_event_loop()
    box = Mailbox(loop)
    loop.close()
    box.put(print, "nobody")
