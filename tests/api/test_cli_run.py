"""
Promises of `wherry run` as a person meets them: real processes, a real control plane, real runs.

One control plane for the module; every test works in a project folder of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shell import DEADLINE, WHERRY, Screen, Shell, control_plane


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with control_plane(tmp_path_factory.mktemp("plane")) as home:
        yield home


@pytest.fixture
def shell(tmp_path: Path, home: Path) -> Shell:
    (tmp_path / "project").mkdir()
    return Shell(tmp_path / "project", home)


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def start(*args: str) -> Screen:
        made.append(Screen(shell, *args))
        return made[-1]

    yield start
    for screen in made:
        screen.close()


ARGPARSE = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--name")
parser.add_argument("--epochs", type=int)
parser.add_argument("rest", nargs="*")
print(parser.parse_args())
print("to stderr", file=sys.stderr)
sys.stdout.buffer.write(b"\\xff no newline")
sys.exit(7)
"""


def test_a_script_sees_its_arguments_and_we_its_streams_and_status(shell: Shell) -> None:
    shell.write("train.py", ARGPARSE)
    done = shell("run", "--name", "mine", "train.py", "--name", "é 1", "--epochs", "3", "a b", "")
    expected = "Namespace(name='é 1', epochs=3, rest=['a b', ''])\n".encode()
    assert done.stdout == expected + b"\xff no newline"
    assert done.stderr.startswith(b"to stderr\n") and b"mine failed" in done.stderr
    assert done.returncode == 7
    run = shell.json("show", "mine")
    assert run["state"] == "failed" and run["params"]["epochs"] == 3


def test_stdin_is_the_scripts(shell: Shell) -> None:
    shell.write("count.py", "import sys\nprint(len(sys.stdin.buffer.read()))\n")
    data = bytes(range(256)) * 8192
    assert shell("run", "count.py", stdin=data).stdout == b"%d\n" % len(data)


def test_with_json_stdout_is_the_run_and_the_script_is_on_stderr(shell: Shell) -> None:
    shell.write("hello.py", "print('hello')\n")
    done = shell("run", "--json", "hello.py")
    run = json.loads(done.stdout)
    assert (run["name"], run["state"]) == ("hello", "succeeded") and run["created"] > 0
    assert done.stderr == b"hello\n"


def test_a_script_that_is_killed_exits_as_in_a_shell(shell: Shell) -> None:
    shell.write("die.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert shell("run", "die.py").returncode == 137


def test_the_environment_and_options_reach_the_script(shell: Shell) -> None:
    shell.write("env.py", "import os\nprint(os.environ['A'], os.environ['B'], os.getcwd())\n")
    shell.env["A"] = "from the shell é"
    done = shell("run", "-e", "B=b=1", "env.py")
    assert done.stdout.decode() == f"from the shell é b=1 {shell.folder}\n", done.stderr


def test_modules_programs_and_job_files_run_too(shell: Shell) -> None:
    shell.write("pkg/__init__.py", "")
    shell.write("pkg/train.py", "import sys\nfrom . import __name__ as n\nprint(n, sys.argv[1:])\n")
    assert shell("run", "-m", "pkg.train", "--name", "x").stdout == b"pkg ['--name', 'x']\n"
    assert shell("run", "--", "echo", "--name", "x").stdout == b"--name x\n"
    shell.write("job.yaml", "command: python -m pkg.train --lr 1\nworkers: 2\ntags: [t]\n")
    lines = shell("run", "job.yaml").stdout.splitlines()
    assert sorted(lines) == [b"[0] pkg ['--lr', '1']", b"[1] pkg ['--lr', '1']"]


def test_a_dry_run_makes_no_run(shell: Shell) -> None:
    shell.write("hello.py", "print('hello')\n")
    before = len(shell.json("ps", "--all"))
    planned = shell.json("run", "--dry-run", "--workers", "2", "hello.py")
    assert planned["spec"]["command"] == ["python", "hello.py"]
    assert len(shell.json("ps", "--all")) == before


def test_detached_then_followed_then_run_again_with_changes(shell: Shell) -> None:
    shell.write("hello.py", "import sys\nprint('hello', *sys.argv[1:])\n")
    done = shell("run", "--detach", "--tag", "first", "hello.py", "1")
    ref = done.stdout.decode().strip()
    assert re.fullmatch(r"r[0-9a-z]{11}", ref), done.stderr
    assert shell("logs", "-f", ref).stdout == b"hello 1\n"
    shell.write("hello.py", "print('edited since')\n")
    again = shell.json("run", "--from", ref, "--tag", "second", "2")
    assert again["parent"] == ref and again["spec"]["tags"] == ["second"]
    assert shell("logs", again["id"]).stdout == b"hello 2\n"


def test_what_a_foreground_run_uses_and_its_record_lacks_is_said_and_shown(shell: Shell) -> None:
    shell.write("data.bin", "x" * 2000)
    (shell.folder / "away").symlink_to("/etc/hostname")
    shell.write(".env", "SECRET=1")
    shell.write("hello.py", "print('hello')\n")
    shell.env["WHERRY_MAX_FILE"] = "1000"
    done = shell("run", "hello.py")
    said = [line for line in done.stderr.decode().splitlines() if "not in the record" in line]
    assert done.stdout == b"hello\n" and len(said) == 1, done.stderr
    assert "away (a link to /etc/hostname" in said[0] and "and 1 more" in said[0]
    shown = {left["path"]: left["why"] for left in shell.json("show", "last")["left_out"]}
    assert shown.keys() >= {"away", "data.bin", ".env"} and "large" in shown["data.bin"]
    assert b"left out" in shell("show", "last").stdout


def test_what_a_script_keeps_can_be_copied_out(shell: Shell) -> None:
    shell.write(
        "keep.py",
        "import os\nd = os.environ['WHERRY_OUTPUT_DIR']\nopen(d + '/model é', 'w').write('m')\n",
    )
    done = shell("run", "--name", "keeper", "keep.py")
    assert done.stderr.startswith(b"kept 1 file: wherry files r")
    (copied,) = shell.json("get", "keeper", "--to", "here")
    assert (shell.folder / copied["to"]).read_text() == "m"


def test_mistakes_are_words(shell: Shell) -> None:
    shell.write("train.py", "")
    done = shell("run", "trian.py")
    assert done.returncode == 2 and b"hint: did you mean 'train.py'?" in done.stderr
    assert b"Traceback" not in done.stderr


# --- at a terminal


def test_breakpoint_works_and_the_terminal_is_left_as_it_was(
    shell: Shell, terminal: Callable[..., Screen]
) -> None:
    shell.write("debug.py", "value = 40\nbreakpoint()\nprint('value is', value)\n")
    screen = terminal("run", "debug.py")
    screen.see(r"\(Pdb\) ")
    screen.press(b"value += 2\r")
    screen.see(r"\(Pdb\) ")
    screen.press(b"c\r")
    screen.see("value is 42\r\n")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.slave) == screen.before


def test_the_script_has_a_terminal_of_our_size(
    shell: Shell, terminal: Callable[..., Screen]
) -> None:
    shell.write(
        "size.py",
        "import os, sys, time\n"
        "print(*os.get_terminal_size(), sys.stdin.isatty(), sys.stdout.isatty())\n"
        "while os.get_terminal_size().columns == 90: time.sleep(0.01)\n"
        "print(*os.get_terminal_size(), input('name? '))\n",
    )
    screen = terminal("run", "size.py")
    screen.see("90 30 True True\r\n")
    termios.tcsetwinsize(screen.slave, (20, 50))
    screen.see(r"name\? ")
    screen.press(b"x\r")
    screen.see("50 20 x\r\n")
    assert screen.end() == 0


CATCHES = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *a: print("caught", flush=True))
signal.signal(signal.SIGTERM, lambda *a: sys.exit("told to stop"))
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def test_ctrl_c_interrupts_the_script(shell: Shell, terminal: Callable[..., Screen]) -> None:
    shell.write("wait.py", "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    screen = terminal("run", "wait.py")
    screen.see("ready")
    screen.press(b"\x03")
    screen.see("KeyboardInterrupt")
    assert screen.end() == 130


def test_ctrl_c_twice_stops_the_run(shell: Shell, terminal: Callable[..., Screen]) -> None:
    shell.write("stubborn.py", CATCHES)
    screen = terminal("run", "--name", "stubborn", "stubborn.py")
    screen.see("ready")
    screen.press(b"\x03")
    screen.see("caught.*Ctrl-C again.*stops the run")
    screen.press(b"\x03")
    screen.see("told to stop")
    assert screen.end() == 130
    assert shell.json("show", "stubborn")["state"] == "stopped"
    assert termios.tcgetattr(screen.slave) == screen.before


def test_a_detached_run_goes_on(shell: Shell, terminal: Callable[..., Screen]) -> None:
    shell.write(
        "long.py",
        "import os, time\nprint('ready', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.05)\nprint('done')\n",
    )
    screen = terminal("run", "long.py")
    screen.see("ready")
    screen.press(b"\x1c")
    ref = screen.see(r"wherry logs -f (r\w+)")[1].decode()
    assert screen.end() == 0
    assert shell.json("show", ref)["state"] == "running"
    (shell.folder / "go").touch()
    assert shell("logs", "-f", ref).stdout == b"ready\ndone\n"


def test_sigterm_stops_the_run(shell: Shell) -> None:
    shell.write("stubborn.py", CATCHES)
    process = subprocess.Popen(
        [*WHERRY, "run", "--name", "termed", "stubborn.py"], cwd=shell.folder, env=shell.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.terminate()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143 and b"told to stop" in err
    assert shell.json("show", "termed")["state"] == "stopped"
