"""
The sender: a thread that brings the journal to the control plane, for as long as it takes.

Started by ``agent.main``. It says hello, then sends batches and heartbeats. A control plane that is
down or restarts costs nothing but time: what is not acknowledged is sent again.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from wherry.agent import protocol
from wherry.agent.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

    from wherry.agent.calls import Control

BATCH = 7 * 2**20  #: bytes of one request; a longer frame goes alone
PACE = 0.05  #: seconds between two requests while little is written


class Sender(threading.Thread):
    """
    ``on_stop()`` is called when the run is to stop, ``on_replaced()`` when this incarnation was
    replaced; both may be called again. ``on_round(number)`` is called with the round that an
    elastic group is in or is to meet for. ``ports``: what this rank offers to the others.
    ``patience``: seconds to wait before the first call.
    """

    def __init__(
        self,
        config: dict[str, Any],
        journal: Journal,
        *,
        ports: list[int],
        on_stop: Callable[[], None],
        on_replaced: Callable[[], None],
        on_round: Callable[[int], None],
        patience: float,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self._config = config
        self._journal = journal
        self._patience = patience
        self._control: Control
        self._ports = ports
        self._on_stop = on_stop
        self._on_replaced = on_replaced
        self._on_round = on_round
        self._hello_due = True
        self._finishing = threading.Event()

    def finish(self) -> None:
        """Return once everything is acknowledged, or this incarnation was replaced."""
        self._finishing.set()
        self._journal.written.set()
        self.join()

    def run(self) -> None:
        """The thread."""
        self._finishing.wait(self._patience)
        # Here and not above: this takes as long as the rest of the agent's start.
        from wherry.agent.calls import Control, Refused, Replaced, Unreachable, backoff

        self._control = Control(self._config)
        delays = backoff()
        while not (self._finishing.is_set() and not self._journal.unsent and not self._hello_due):
            try:
                self._step()
                delays = backoff()
            except Replaced:
                self._on_replaced()
                return
            except Refused as error:
                # What was sent does not follow what is stored: ask again where to go on.
                print(f"refused: {error.status} {error.code} {error.message}", flush=True)
                self._hello_due = True
                time.sleep(next(delays))
            except Unreachable:
                self._hello_due = True
                time.sleep(next(delays))
            except Exception:
                # An answer that nobody foresaw must not cost the reports.
                traceback.print_exc()
                self._hello_due = True
                time.sleep(next(delays))
        self._control.close()

    def _step(self) -> None:
        if self._hello_due:
            answer = self._control.call("POST", "/hello", self._hello())
            self._journal.acknowledge(int(answer["acked"]))
            self._hello_due = False
        self._journal.written.clear()
        body, _last = self._journal.read(BATCH)
        answer = self._control.call("POST", "/reports", body)
        self._journal.acknowledge(int(answer["acked"]))
        if answer.get("stop"):
            self._on_stop()
        if answer.get("round"):
            self._on_round(int(answer["round"]))
        if len(body) < BATCH // 2 and not self._finishing.is_set():
            self._finishing.wait(PACE)
            self._journal.written.wait(self._config["heartbeat"])

    def _hello(self) -> bytes:
        from wherry.agent.calls import own_address

        address = self._config.get("network", {}).get("address")
        address = address or own_address(self._control.host, self._control.port)
        hello = {
            "protocol": protocol.PROTOCOL,
            "host": socket.gethostname(),
            "address": address,
            "ports": self._ports,
            "pid": os.getpid(),
            "python": sys.version.split()[0],
        }
        return json.dumps(hello).encode()
