"""The broker of wherry.map: what is given, given back, kept and refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from wherry.agent import tasks as t
from wherry.control.tasks import Broker, Worker
from wherry.core.states import RunState
from wherry.errors import InvalidInput, Unavailable

ONE, TWO = Worker(1, 0, 1), Worker(1, 1, 1)


def chunk(number: int, *, short: bool = False, size: int = 1) -> bytes:
    return t.frame(t.CHUNK, number, bytes([t.SHORT if short else 0]) + b"x" * size)


def put(broker: Broker, *frames: bytes) -> int:
    return broker.put(broker.epoch, b"".join(frames)).accepted


def given(body: bytes) -> list[int]:
    return [number for kind, number, _ in t.iter_frames(body) if kind == t.CHUNK]


def told(body: bytes | None) -> tuple[dict[str, Any], list[tuple[int, int, bytes]]]:
    assert body is not None
    first, *rest = [(kind, number, bytes(payload)) for kind, number, payload in t.iter_frames(body)]
    return json.loads(first[2]), rest


def ask(broker: Broker, worker: Worker, *held: int, want: int = 1) -> list[int]:
    broker.asks(worker, held)
    return given(broker.take(worker, want))


def test_chunks_are_given_in_order_and_each_once() -> None:
    broker = Broker()
    assert put(broker, chunk(1), chunk(2), chunk(3)) == 3
    assert ask(broker, ONE) == [1]
    assert ask(broker, TWO) == [2]
    assert ask(broker, ONE, 1) == []  # it has one that may take long
    broker.answer(ONE, t.frame(t.RESULT, 1, b"one"))
    assert ask(broker, ONE) == [3]


def test_the_same_chunk_again_changes_nothing() -> None:
    broker = Broker()
    put(broker, chunk(1))
    assert put(broker, chunk(1)) == 1
    assert ask(broker, ONE) == [1]
    assert ask(broker, TWO) == []


def test_only_short_chunks_wait_behind_another_and_only_behind_short_ones() -> None:
    broker = Broker()
    put(broker, chunk(1, short=True), chunk(2, short=True), chunk(3), chunk(4, short=True))
    assert ask(broker, ONE, want=2) == [1, 2]
    broker.answer(ONE, t.frame(t.RESULT, 1) + t.frame(t.RESULT, 2))
    assert ask(broker, ONE, want=2) == [3]  # 4 would wait behind it, for nobody knows how long
    assert ask(broker, TWO) == [4]


def test_what_a_worker_does_not_name_goes_to_another() -> None:
    """Its answer was lost on the way, or it gave the chunk back because another takes long."""
    broker = Broker()
    put(broker, chunk(1), chunk(2))
    assert ask(broker, ONE) == [1]
    assert ask(broker, ONE) == [1]  # the first answer never came
    broker.asks(ONE, [])
    assert ask(broker, TWO) == [1]


def test_the_chunks_of_a_dead_worker_go_back_to_the_driver_with_the_reason() -> None:
    broker = Broker()
    put(broker, chunk(1), chunk(2))
    ask(broker, ONE)
    ask(broker, TWO)
    broker.look(RunState.RUNNING, {TWO: True}, lambda rank: f"rank {rank} was killed")
    state, answers = told(broker.collect(broker.epoch, 0))
    assert state["workers"] == 1
    assert answers == [(t.LOST, 1, b'{"why": "rank 0 was killed"}')]
    assert ask(broker, Worker(1, 0, 2)) == []  # the driver decides what becomes of it


def test_a_new_incarnation_and_a_new_attempt_are_other_workers() -> None:
    broker = Broker()
    put(broker, chunk(1))
    ask(broker, ONE)
    broker.look(RunState.RUNNING, {Worker(1, 0, 2): True}, lambda _: "")
    assert [a[:2] for a in told(broker.collect(broker.epoch, 0))[1]] == [(t.LOST, 1)]
    put(broker, chunk(2))
    ask(broker, Worker(1, 0, 2))
    broker.look(RunState.RUNNING, {Worker(2, 0, 2): True}, lambda _: "")
    assert [a[:2] for a in told(broker.collect(broker.epoch, 1))[1]] == [(t.LOST, 2)]


def test_answers_are_kept_until_the_driver_has_them() -> None:
    broker = Broker()
    put(broker, chunk(1), chunk(2))
    ask(broker, ONE)
    broker.answer(ONE, t.frame(t.PART, 1, b"some") + t.frame(t.RESULT, 1, b"rest"))
    for _ in range(2):  # the first answer may be lost on the way
        state, answers = told(broker.collect(broker.epoch, 0))
        assert answers == [(t.PART, 1, b"some"), (t.RESULT, 1, b"rest")]
        assert state["next"] == 2
    assert told(broker.collect(broker.epoch, 1))[1] == [(t.RESULT, 1, b"rest")]
    assert broker.collect(broker.epoch, 2) is None


def test_one_that_starts_anew_says_so_and_takes_nothing_by_its_old_name() -> None:
    before, after = Broker(), Broker()
    put(before, chunk(1))
    answer = after.put(before.epoch, chunk(2))
    assert (answer.accepted, answer.epoch) == (0, after.epoch)
    assert told(after.collect(before.epoch, 5))[0]["epoch"] == after.epoch
    assert ask(after, ONE) == []


def test_what_workers_had_before_it_started_anew_is_not_given_to_others() -> None:
    broker = Broker()
    assert ask(broker, ONE, 7) == []  # it does not know of 7 yet
    put(broker, chunk(7), chunk(8))
    assert ask(broker, TWO) == [8]
    assert ask(broker, ONE, 7) == []
    broker.answer(ONE, t.frame(t.RESULT, 7, b"seven"))
    assert told(broker.collect(broker.epoch, 0))[1] == [(t.RESULT, 7, b"seven")]


def test_a_chunk_that_comes_back_before_its_holder_does_goes_to_the_holder() -> None:
    broker = Broker()
    put(broker, chunk(7))
    assert ask(broker, ONE, 7) == []
    assert ask(broker, TWO) == []


def test_what_is_sent_again_waits_until_every_worker_has_said_what_it_has() -> None:
    now = [0.0]
    broker = Broker(clock=lambda: now[0])
    again = t.frame(t.CHUNK, 7, bytes([t.AGAIN]) + b"x")
    put(broker, again, t.frame(t.CHUNK, 8, bytes([t.AGAIN]) + b"x"))
    assert ask(broker, ONE) == []  # nobody knows yet who lives
    broker.look(RunState.RUNNING, {ONE: True, TWO: True, Worker(1, 2, 1): False}, lambda _: "")
    assert ask(broker, ONE) == []
    assert ask(broker, TWO, 7) == []
    assert ask(broker, ONE) == [8]

    other = Broker(clock=lambda: now[0])
    put(other, again)
    other.look(RunState.RUNNING, {ONE: True, TWO: True}, lambda _: "")
    assert ask(other, ONE) == []
    now[0] = 60.0  # the other one has had its time
    assert ask(other, ONE) == [7]


def test_it_takes_no_more_than_its_limit_but_always_one() -> None:
    broker = Broker(limit=100)
    assert put(broker, chunk(1, size=500)) == 1
    assert put(broker, chunk(2, size=10)) == 0
    ask(broker, ONE)
    broker.answer(ONE, t.frame(t.RESULT, 1, b"r" * 500))
    assert put(broker, chunk(2, size=10), chunk(3, size=200)) == 1
    ask(broker, ONE)
    with pytest.raises(Unavailable):
        broker.answer(ONE, t.frame(t.RESULT, 2, b"r"))
    broker.collect(broker.epoch, 1)  # the driver has the first
    broker.answer(ONE, t.frame(t.RESULT, 2, b"r"))


def test_a_cancelled_chunk_is_not_given_and_its_room_is_free() -> None:
    broker = Broker(limit=100)
    put(broker, chunk(1, size=80))
    put(broker, t.frame(t.CANCEL, 1))
    assert put(broker, chunk(2, size=80)) == 1
    assert ask(broker, ONE) == [2]
    put(broker, t.frame(t.CANCEL, 2))  # it is at work: its result is ignored by the driver
    broker.answer(ONE, t.frame(t.RESULT, 2))


def test_after_the_end_workers_are_told_to_leave() -> None:
    broker = Broker()
    put(broker, chunk(1))
    broker.end()
    broker.asks(ONE, [])
    assert [kind for kind, *_ in t.iter_frames(broker.take(ONE, 1))] == [t.END]


def test_blobs_are_granted_by_digest() -> None:
    broker = Broker()
    put(broker, t.frame(t.GRANT, 0, bytes.fromhex("ab" * 32) + bytes.fromhex("cd" * 32)))
    assert broker.granted == {"ab" * 32, "cd" * 32}


@pytest.mark.parametrize("body", [b"\0", b"\xff" * 20, t.frame(t.CHUNK, 1, b"xy")[:-1]])
def test_what_are_no_frames_is_refused(body: bytes) -> None:
    broker = Broker()
    with pytest.raises(InvalidInput):
        broker.put(broker.epoch, body)


def test_the_driver_is_heard_when_it_calls() -> None:
    now = [0.0]
    broker = Broker(clock=lambda: now[0])
    now[0] = 5.0
    broker.collect("", 0)
    assert broker.heard == 5.0
    now[0] = 6.0
    ask(broker, ONE)
    broker.answer(ONE, t.frame(t.RESULT, 1))
    assert broker.heard == 5.0  # workers are not the driver


def test_a_driver_learns_of_the_runs_end_at_once() -> None:
    async def scenario() -> None:
        broker = Broker()
        waiting = asyncio.ensure_future(broker.wait_for_answer(60))
        await asyncio.sleep(0)
        broker.look(RunState.FAILED, {}, lambda _: "")
        await asyncio.wait_for(waiting, 5)
        assert told(broker.collect(broker.epoch, 0))[0]["state"] == "failed"

    asyncio.run(scenario())


def test_of_many_that_wait_those_with_empty_hands_are_woken_first() -> None:
    async def scenario() -> None:
        broker = Broker()
        put(broker, chunk(1, short=True))
        assert ask(broker, ONE) == [1]
        broker.asks(ONE, [1])
        busy = asyncio.ensure_future(broker.wait_for_chunk(ONE, 60))
        broker.asks(TWO, [])
        idle = asyncio.ensure_future(broker.wait_for_chunk(TWO, 60))
        await asyncio.sleep(0)
        put(broker, chunk(2, short=True))
        await asyncio.wait_for(idle, 5)
        assert not busy.done()
        put(broker, chunk(3, short=True))  # 2 is not taken yet, so the next one comes for it
        await asyncio.wait_for(busy, 5)

    asyncio.run(scenario())


def test_a_lost_connections_question_is_void() -> None:
    broker = Broker()
    first = broker.asks(ONE, [])
    second = broker.asks(ONE, [])
    assert not broker.stands(ONE, first)
    assert broker.stands(ONE, second)
