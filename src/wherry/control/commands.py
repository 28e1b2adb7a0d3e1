"""
What the control plane asks of ranks while they run: in memory, by incarnation of a rank.

Called by the routes of people (``ask``, ``open``) and of agents (``waiting``, ``answer``,
``channel``). Agents only ever call out, so a command waits here until its agent fetches it. Lives
on the event loop. Nothing survives a restart: whoever waits is then told to ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from wherry.control.channels import Channel
from wherry.control.tokens import RankIdentity
from wherry.core.ids import new_token
from wherry.errors import NotFound, RankUnreachable

ARRIVE = 15.0  #: seconds for an agent to come for a command that opens a channel


class Command(Struct, frozen=True):
    """One command. ``number`` grows, also over restarts of the control plane."""

    number: int
    id: str
    kind: str
    fields: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """As the agent gets it."""
        return {"number": self.number, "id": self.id, "kind": self.kind, **self.fields}


class Commands:
    """The table of one control plane."""

    def __init__(self) -> None:
        self._commands: dict[RankIdentity, dict[str, Command]] = {}
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._channels: dict[str, Channel] = {}
        self._pollers: dict[RankIdentity, set[asyncio.Future[None]]] = {}
        self._last = 0
        self._closed = False

    # --- a person's end
    async def ask(
        self, who: RankIdentity, kind: str, fields: dict[str, Any], *, timeout: float
    ) -> dict[str, Any]:
        """
        What the agent answers.

        :param timeout: seconds. :raises RankUnreachable: where it does not.
        """
        command = self._add(who, kind, fields)
        future = self._answers[command.id] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise _unreachable(who, timeout) from None
        finally:
            del self._answers[command.id]
            self._done(who, command.id)

    async def open(self, who: RankIdentity, *, patience: float = ARRIVE) -> Channel:
        """
        A channel to the rank, once its agent has come. It hangs up unless ``outgoing`` attends.

        :raises RankUnreachable: where it does not come within ``patience`` seconds.
        """
        channel = Channel(new_token("wc"), who, self._forget)
        self._channels[channel.id] = channel
        command = self._add(who, "exec", {"channel": channel.id})
        try:
            await asyncio.wait_for(channel.taken.wait(), patience)
        except TimeoutError:
            channel.hang_up()
            raise _unreachable(who, patience) from None
        except BaseException:
            channel.hang_up()
            raise
        finally:
            self._done(who, command.id)
        if channel.refused:
            raise RankUnreachable(f"rank {who.rank} cannot be reached: {channel.refused}")
        asyncio.get_running_loop().call_later(patience, channel.expire)
        return channel

    def channel(self, id: str, who: RankIdentity | None = None) -> Channel:
        """The open channel; for an agent one of its own. :raises NotFound:"""
        found = self._channels.get(id)
        if found is None or (who is not None and found.who != who):
            raise NotFound("there is no such channel", hint="the other end has hung up")
        return found

    # --- an agent's end
    async def waiting(self, who: RankIdentity, *, after: int, wait: float) -> list[dict[str, Any]]:
        """The commands for this rank that are newer than ``after``; none after ``wait`` seconds."""
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            fresh = [c.data() for c in self._of(who) if c.number > after]
            left = deadline - asyncio.get_running_loop().time()
            if fresh or left <= 0 or self._closed:
                return fresh
            await self._news(who, left)

    def answer(self, who: RankIdentity, id: str, answer: dict[str, Any]) -> None:
        """The agent has done it. Again, or too late: nothing."""
        if not any(command.id == id for command in self._of(who)):
            return
        future = self._answers.get(id)
        if future is not None and not future.done():
            future.set_result(answer)

    # --- the end
    def close(self) -> None:
        """The process is about to end: nobody waits any longer."""
        self._closed = True
        for who in list(self._pollers):
            self._wake(who)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(RankUnreachable("the control plane is being stopped"))
        for channel in list(self._channels.values()):
            channel.refuse("the control plane is being stopped")

    # --- the table
    def _add(self, who: RankIdentity, kind: str, fields: dict[str, Any]) -> Command:
        if self._closed:
            raise RankUnreachable("the control plane is being stopped", hint="ask again")
        self._last = max(self._last + 1, time.time_ns())
        command = Command(self._last, new_token("wc"), kind, fields)
        self._commands.setdefault(who, {})[command.id] = command
        self._wake(who)
        return command

    def _wake(self, who: RankIdentity) -> None:
        for future in self._pollers.get(who, ()):
            if not future.done():
                future.set_result(None)

    async def _news(self, who: RankIdentity, timeout: float) -> None:
        """Until there is a new command, or ``timeout`` seconds are over."""
        future = asyncio.get_running_loop().create_future()
        own = self._pollers.setdefault(who, set())
        own.add(future)
        try:
            await asyncio.wait({future}, timeout=timeout)
        finally:
            own.discard(future)
            if not own:
                self._pollers.pop(who, None)

    def _of(self, who: RankIdentity) -> Iterator[Command]:
        return iter(self._commands.get(who, {}).values())

    def _done(self, who: RankIdentity, id: str) -> None:
        if own := self._commands.get(who):
            own.pop(id, None)
            if not own:
                del self._commands[who]

    def _forget(self, id: str) -> None:
        self._channels.pop(id, None)


def _unreachable(who: RankIdentity, waited: float) -> RankUnreachable:
    return RankUnreachable(
        f"the agent of rank {who.rank} did not answer within {waited:g} s",
        hint=f"wherry show {who.attempt.run} says how it is",
    )
