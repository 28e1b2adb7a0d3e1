"""Commands to ranks and the channels that they open: bounded, in order, and never for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from wherry.control import channels
from wherry.control.channels import Channel, HungUp, Pipe, incoming, outgoing
from wherry.control.commands import Commands
from wherry.control.tokens import RankIdentity
from wherry.core.run import AttemptId
from wherry.errors import NotFound, RankUnreachable

ONE = RankIdentity(AttemptId("r1", 1), 0, 1)
OTHER = RankIdentity(AttemptId("r1", 1), 1, 1)
REPLACED = RankIdentity(AttemptId("r1", 1), 0, 2)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# --- pipes


def test_a_writer_waits_until_there_is_room_and_nothing_is_lost() -> None:
    async def scene() -> None:
        pipe = Pipe(limit=10)
        data = bytes(range(256)) * 10
        writing = asyncio.create_task(pipe.write(data))
        seen = b""
        while len(seen) < len(data):
            await asyncio.sleep(0)
            part = await pipe.read()
            assert 0 < len(part) <= 10
            assert not writing.done() or len(seen) + len(part) >= len(data) - 10
            seen += part
        await writing
        assert seen == data

    asyncio.run(scene())


def test_what_was_written_before_the_end_is_still_read() -> None:
    async def scene() -> None:
        pipe = Pipe()
        await pipe.write(b"last words")
        pipe.end()
        assert [await pipe.read(), await pipe.read()] == [b"last words", b""]
        with pytest.raises(HungUp):
            await pipe.write(b"more")

    asyncio.run(scene())


def test_a_writer_that_waits_is_told_when_nobody_will_read() -> None:
    async def scene() -> None:
        pipe = Pipe(limit=1)
        writing = asyncio.create_task(pipe.write(b"too much"))
        await asyncio.sleep(0)
        pipe.cut()
        with pytest.raises(HungUp):
            await writing

    asyncio.run(scene())


def test_a_quiet_line_shows_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "QUIET", 0.001)

    async def scene() -> None:
        channel = Channel("c", ONE, lambda _: None)
        out = outgoing(channel.to_person, channel)
        assert await anext(out) == channels._NOTHING
        await channel.to_person.write(b"x")
        while (data := await anext(out)) == channels._NOTHING:
            pass
        assert data == b"x"

    asyncio.run(scene())


def test_who_sends_and_says_nothing_for_too_long_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "SILENCE", 0.001)

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def scene() -> None:
        with pytest.raises(TimeoutError):
            await incoming(silent(), Pipe())

    asyncio.run(scene())


def test_a_reader_that_leaves_hangs_up_on_the_other_end() -> None:
    async def scene() -> None:
        channel = Channel("c", ONE, lambda _: None)
        out = outgoing(channel.to_person, channel)
        reading: asyncio.Future[bytes] = asyncio.ensure_future(anext(out))
        await asyncio.sleep(0)
        reading.cancel()
        assert await channel.to_rank.read() == b""

    asyncio.run(scene())


def test_the_end_of_a_stream_is_passed_on_and_a_hung_up_reader_ends_it() -> None:
    async def scene() -> None:
        pipe = Pipe()
        await incoming(pieces(b"a", b"b"), pipe)
        assert await pipe.read() == b"ab"
        pipe.cut()
        await incoming(pieces(b"c"), pipe)  # no error: nobody wants it

    asyncio.run(scene())


# --- commands


def test_a_command_reaches_its_rank_and_the_answer_whoever_asked() -> None:
    async def scene() -> None:
        table = Commands()
        asking = asyncio.create_task(table.ask(ONE, "stack", {"native": True}, timeout=20))
        (command,) = await table.waiting(ONE, after=0, wait=20)
        assert (command["kind"], command["native"]) == ("stack", True)
        assert await table.waiting(ONE, after=command["number"], wait=0) == []
        table.answer(ONE, command["id"], {"processes": []})
        assert await asking == {"processes": []}
        assert await table.waiting(ONE, after=0, wait=0) == []

    asyncio.run(scene())


def test_a_rank_that_asked_before_is_woken_by_its_command_and_by_no_other() -> None:
    async def scene() -> None:
        table = Commands()
        polls = [asyncio.create_task(table.waiting(who, after=0, wait=20)) for who in (ONE, OTHER)]
        await asyncio.sleep(0)
        asking = asyncio.create_task(table.ask(ONE, "stack", {}, timeout=20))
        assert len(await polls[0]) == 1
        assert not polls[1].done()
        for task in (asking, polls[1]):
            task.cancel()

    asyncio.run(scene())


def test_a_command_that_got_lost_on_its_way_is_given_again_to_who_has_not_seen_it() -> None:
    async def scene() -> None:
        table = Commands()
        asking = asyncio.create_task(table.ask(ONE, "stack", {}, timeout=20))
        first = await table.waiting(ONE, after=0, wait=20)
        assert await table.waiting(ONE, after=0, wait=20) == first
        asking.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize("who", [OTHER, REPLACED])
def test_another_rank_or_incarnation_neither_sees_nor_answers_nor_takes_it(
    who: RankIdentity,
) -> None:
    async def scene() -> None:
        table = Commands()
        opening = asyncio.create_task(table.open(ONE))
        (command,) = await table.waiting(ONE, after=0, wait=20)
        assert await table.waiting(who, after=0, wait=0) == []
        with pytest.raises(NotFound):
            table.channel(command["channel"], who)
        table.channel(command["channel"], ONE).take()
        assert (await opening).who == ONE
        asking = asyncio.create_task(table.ask(ONE, "stack", {}, timeout=20))
        (command,) = await table.waiting(ONE, after=command["number"], wait=20)
        table.answer(who, command["id"], {"forged": True})
        assert not asking.done()
        table.answer(ONE, command["id"], {"forged": False})
        assert await asking == {"forged": False}

    asyncio.run(scene())


def test_who_does_not_answer_or_come_is_named() -> None:
    async def scene() -> None:
        table = Commands()
        for call in (table.ask(ONE, "stack", {}, timeout=0), table.open(ONE, patience=0)):
            with pytest.raises(RankUnreachable, match="rank 0 did not answer within 0 s"):
                await call
        assert await table.waiting(ONE, after=0, wait=0) == []

    asyncio.run(scene())


def test_a_channel_that_nobody_attends_is_given_up() -> None:
    async def scene() -> None:
        table = Commands()
        opening = asyncio.create_task(table.open(ONE, patience=0.05))
        (command,) = await table.waiting(ONE, after=0, wait=20)
        table.channel(command["channel"], ONE).take()
        channel = await opening
        assert await channel.to_rank.read() == b""
        with pytest.raises(NotFound):
            table.channel(channel.id)

    asyncio.run(scene())


def test_when_the_process_ends_nobody_waits_any_longer() -> None:
    async def scene() -> None:
        table = Commands()
        waits = [
            asyncio.create_task(table.waiting(OTHER, after=0, wait=60)),
            asyncio.create_task(table.ask(ONE, "stack", {}, timeout=60)),
            asyncio.create_task(table.open(ONE, patience=60)),
        ]
        await asyncio.sleep(0)
        table.close()
        none, *refused = await asyncio.gather(*waits, return_exceptions=True)
        assert none == [] and all(isinstance(error, RankUnreachable) for error in refused)
        with pytest.raises(RankUnreachable):
            await table.ask(ONE, "stack", {}, timeout=60)

    asyncio.run(scene())
