"""
What the agent costs the program: a call of ``report``, captured output, the first line's delay.

Run: ``python bench/agent.py [--json]``. Beside the figures stand an empty call, the same output
through ``cat`` into a file, and a bare Python that prints the same line.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from wherry.agent import package, protocol
from wherry.agent.journal import Journal
from wherry.agent.reports import ReportTail
from wherry.testing.sink import AgentSink

CALLS = 200_000
MEGABYTES = 500
STARTS = 15
WRITER = f"""
import os
block = b"".join(b"line %d of some output that a program may write\\n" % i for i in range(20_000))
block = block[:block.rfind(b"\\n", 0, 1 << 20) + 1]
for _ in range({MEGABYTES} * 10**6 // len(block)):
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
"""
HELLO = "print('hello')\n"


class Agent:
    """Runs scripts under a real agent, against a sink that acknowledges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main = package.unpack(package.build_zip(), folder / "agent")
        self.count = 0

    def run(self, sink: AgentSink, script: str, attach: str = "") -> subprocess.Popen[bytes]:
        """Start one rank of a fresh run."""
        self.count += 1
        run = f"r{self.count}"
        folder = self.folder / run / "0"
        folder.mkdir(parents=True)
        (folder.parent / "script.py").write_text(script)
        config = {
            "protocol": protocol.PROTOCOL,
            "server": sink.url,
            "server_file": "",
            "token": sink.token(f"{run}-1"),
            "run": run,
            "attempt": 1,
            "rank": 0,
            "incarnation": 1,
            "world_size": 1,
            "processes": 1,
            "spec": {
                "command": ["python", "script.py"],
                "code": {"in_place": str(folder.parent)},
                "environment": {"python": sys.executable},
            },
            "dir": str(folder),
            "shared_dir": str(folder.parent),
            "cache": str(self.folder / "cache"),
            "checkpoints": str(self.folder / "checkpoints"),
            "checkpoints_shared": True,
            "threads": 1,
            "attach": attach,
            "uv": "",
            "grace": 5.0,
            "heartbeat": 2.0,
            "lease": 30.0,
            "barrier_timeout": 60.0,
            "spool_limit": 2**32,
            "limits": {"memory": None, "cgroup": []},
        }
        (folder / "config.json").write_text(json.dumps(config))
        command = [sys.executable, "-I", "-S", "-X", "utf8", str(self.main)]
        return subprocess.Popen([*command, str(folder / "config.json")])


def report_calls(folder: Path) -> dict[str, float]:
    """Microseconds of a call, and how fast the agent reads what it wrote."""
    path = folder / "report"
    script = (
        "import time\nfrom wherry.agent.user import report\n"
        "def empty(step=None, **metrics): pass\n"
        "for call in (empty, report):\n"
        "    call(0, loss=0.5); best = 9.0\n"
        "    for _ in range(5):\n"
        "        began = time.perf_counter()\n"
        f"        for i in range({CALLS // 5}): call(i, loss=0.123456789)\n"
        f"        best = min(best, (time.perf_counter() - began) / {CALLS // 5})\n"
        "    print(best * 1e6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "WHERRY_REPORT": str(path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    empty, call = map(float, done.stdout.split())
    began = time.perf_counter()
    ReportTail(path, Journal(folder, 2**32)).poll()
    rate = CALLS / (time.perf_counter() - began)
    return {"report µs": call, "empty call µs": empty, "points read/s": rate}


def capture(agent: Agent, sink: AgentSink, folder: Path) -> dict[str, float]:
    """Megabytes a second of output: delivered, kept while nobody answers, through ``cat``."""
    began = time.perf_counter()
    assert agent.run(sink, WRITER).wait() == 0
    delivered = time.perf_counter() - began

    sink.mode = "offline"
    marked = WRITER + "open('ended', 'w')\n"
    began = time.perf_counter()
    process = agent.run(sink, marked)
    ended = agent.folder / f"r{agent.count}" / "ended"
    while not ended.exists():
        time.sleep(0.002)
    kept = time.perf_counter() - began
    sink.mode = "ok"
    assert process.wait() == 0

    (folder / "writer.py").write_text(WRITER)
    began = time.perf_counter()
    subprocess.run(f"{sys.executable} writer.py | cat > copy", shell=True, check=True, cwd=folder)
    plain = time.perf_counter() - began
    (folder / "copy").unlink()
    return {
        "log delivered MB/s": MEGABYTES / delivered,
        "log kept, nobody answers, MB/s": MEGABYTES / kept,
        "cat MB/s": MEGABYTES / plain,
    }


def first_line(agent: Agent, sink: AgentSink, folder: Path) -> dict[str, float]:
    """Milliseconds from the start of the agent to the first line on an attached terminal."""
    (folder / "hello.py").write_text(HELLO)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    listener.listen()
    bare, attached = [], []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, folder / "hello.py"], stdout=subprocess.PIPE, check=True)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        process = agent.run(sink, HELLO, attach=str(folder / "s"))
        terminal = listener.accept()[0]
        start = {"env": dict(os.environ), "tty": None, "stdin": False}
        terminal.sendall(protocol.attach_frame(protocol.ATTACH_START, json.dumps(start).encode()))
        seen = b""
        while b"hello" not in seen:
            block = terminal.recv(65536)
            assert block, "the agent hung up"
            seen += block
        attached.append(time.perf_counter() - began)
        terminal.close()
        process.wait()
    listener.close()
    return {
        "first line ms": min(attached) * 1e3,
        "bare Python's line ms": min(bare) * 1e3,
        "first line over bare ms": (min(attached) - min(bare)) * 1e3,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, AgentSink(record=False) as sink:
        folder = Path(name)
        agent = Agent(folder)
        figures |= report_calls(folder)
        figures |= first_line(agent, sink, folder)
        figures |= capture(agent, sink, folder)
    if as_json:
        print(json.dumps(figures))
    else:
        for label, value in figures.items():
            print(f"{label:>32}  {value:,.2f}")


if __name__ == "__main__":
    main()
