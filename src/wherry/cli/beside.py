"""
``wherry exec``: a program beside a rank's, at this terminal.

The loop is a small brother of ``foreground``'s: one agent, by way of the control plane, and whoever
leaves ends the program.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from wherry.cli import options

if TYPE_CHECKING:
    from wherry.sdk.beside import Line

_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH", "SIGTSTP", "SIGCONT")
_AHEAD = 1 << 18  # bytes of stdin read ahead of the program
_MISSING = 127  # as a shell has it


@click.command("exec")
@click.argument("ref", metavar="RUN")
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.option("--rank", "-r", type=int, help="Default: the rank that is held, else 0.")
@click.option("--attempt", type=int, help="Refuse where another attempt runs.")
@click.option(
    "--stdin/--no-stdin", "-i/", default=True, help="Pass standard input on (the default)."
)
@click.option(
    "--tty/--no-tty", "-t/-T", default=None,
    help="A terminal of its own. Default: where stdin and stdout are terminals.",
)  # fmt: skip
@options.on_option
@click.pass_context
def exec_(
    ctx: click.Context,
    ref: str,
    command: tuple[str, ...],
    rank: int | None,
    attempt: int | None,
    stdin: bool,
    tty: bool | None,
    on: str,
) -> None:
    """
    Run a program beside a rank's: its folder, environment, user, and its exit status.

    It ends with the rank, and with this command.
    """
    from wherry.cli.terminal import STDOUT, is_tty
    from wherry.sdk.beside import dial

    if not command:
        raise click.UsageError(f"nothing to run\nhint: wherry exec {ref} -- bash", ctx)
    if tty is None:
        tty = stdin and is_tty(0) and is_tty(STDOUT)
    with dial(options.connect(on), ref, rank=rank, attempt=attempt) as line:
        ctx.exit(Beside(line, command, stdin=stdin, tty=tty).attend())


class Beside:
    """The program, seen from this terminal."""

    def __init__(self, line: Line, command: tuple[str, ...], *, stdin: bool, tty: bool) -> None:
        from wherry.cli.attach import Peer
        from wherry.cli.terminal import Signals, Terminal, is_open, is_tty

        self._line, self._command, self._tty = line, command, tty
        self._peer = Peer(line.socket)
        self._terminal = Terminal()
        self._raw = tty and is_tty(0)
        self._stdin_open = stdin and is_open(0)
        self._stdin_read = False
        self._signals = Signals(_HANDLED)
        self._selector = selectors.SelectSelector()  # the only one that takes any kind of stdin
        self._status: int | None = None

    def attend(self) -> int:
        """Until it has ended, or we must; the status to exit with. :raises RankUnreachable:"""
        from wherry.sdk.beside import start

        with self._signals, self._selector:
            size = self._terminal.size() if self._tty else None
            term = os.environ.get("TERM", "xterm")
            frame = start(self._command, tty=size, stdin=self._stdin_open, term=term)
            self._peer.put(frame)
            self._selector.register(self._peer.socket, selectors.EVENT_READ, self._serve)
            self._selector.register(self._signals, selectors.EVENT_READ, self._signals.clear)
            try:
                self._own_terminal()
                while self._status is None:
                    self._step()
            finally:
                self._terminal.restore()
        return self._status

    def _own_terminal(self) -> None:
        if self._raw and self._terminal.mine():
            self._terminal.make_raw()

    def _step(self) -> None:
        while self._signals.caught and self._status is None:
            self._signalled(self._signals.caught.popleft())
        self._mind_stdin()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._peer.waiting else 0)
        self._selector.modify(self._peer.socket, events, self._serve)
        # Now and then also by the clock: a background job that comes to the front may read again.
        for key, _ in self._selector.select(1.0) if self._status is None else ():
            call: Callable[[], None] = key.data
            call()

    def _serve(self) -> None:
        from wherry.cli.terminal import STDERR, STDOUT, write_all

        alive = self._peer.receive()
        self._peer.flush()
        for kind, payload in self._peer.frames():
            self._obey(kind, payload, {1: STDOUT, 2: STDERR}, write_all)
        if not alive and self._status is None:
            self._terminal.restore()
            raise self._line.cut_off()

    def _obey(
        self, kind: int, payload: memoryview, fds: dict[int, int], write: Callable[..., None]
    ) -> None:
        from wherry.agent import protocol

        if kind == protocol.ATTACH_OUT:
            write(fds[payload[0]], payload[1:])
        elif kind == protocol.ATTACH_NOTE:
            self._say(bytes(payload).decode(errors="replace"))
        elif kind == protocol.ATTACH_ENDED:
            self._ended(json.loads(bytes(payload)))

    def _ended(self, how: dict[str, Any]) -> None:
        from wherry.sdk.beside import status

        self._terminal.restore()
        self._status = status(how)
        if how.get("message"):
            from wherry.cli.main import complain

            hint = "the words after -- are a program and its arguments"
            complain(how["message"], hint if self._status == _MISSING else "")

    def _say(self, text: str) -> None:
        from wherry.cli.output import note

        raw = self._terminal.raw
        self._terminal.restore()
        note(text)
        if raw:
            self._terminal.make_raw()

    # --- input
    def _mind_stdin(self) -> None:
        want = self._stdin_open and self._peer.waiting < _AHEAD and self._terminal.mine()
        if want and not self._stdin_read:
            self._selector.register(0, selectors.EVENT_READ, self._input)
        elif not want and self._stdin_read:
            self._selector.unregister(0)
        self._stdin_read = want

    def _input(self) -> None:
        from wherry.agent import protocol

        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        self._stdin_open = bool(data)
        self._peer.send(protocol.ATTACH_IN, data)

    # --- signals
    def _signalled(self, number: int) -> None:
        from wherry.agent import protocol

        if number in (signal.SIGTERM, signal.SIGHUP):
            self._status = 128 + number
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self._peer.send_json(protocol.ATTACH_SIGNAL, {"signal": int(number)})
        elif number == signal.SIGWINCH and self._tty:
            self._peer.send_json(protocol.ATTACH_RESIZE, self._terminal.size())
        elif number == signal.SIGTSTP:
            self._terminal.restore()
            os.kill(os.getpid(), signal.SIGSTOP)
        elif number == signal.SIGCONT:
            self._own_terminal()
