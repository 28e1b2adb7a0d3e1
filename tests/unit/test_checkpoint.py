"""Checkpoints: whole or not there, the newest complete one, and being asked to end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent_rank import interpreters
from wherry.agent import checkpoint as on_disk
from wherry.agent import user
from wherry.testing.waiting import eventually

SOURCE = Path(user.__file__).parents[2]
#: As the shim does it: the agent's package without what a wheel brings.
HEAD = (
    "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
    "sys.modules['wherry'] = package = type(sys)('wherry')\n"
    "package.__path__ = [sys.path[0] + '/wherry']\n"
    "from wherry.agent import user\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("CHECKPOINT_DIR", "ATTEMPT", "MARK", "WORLD_SIZE", "STOPPING"):
        monkeypatch.delenv(f"WHERRY_{name}", raising=False)
    return tmp_path / "checkpoints"


def save(step: int | None, text: str = "x", **options: Any) -> None:
    with user.checkpoint(step, **options) as made:
        (made / "state").write_text(text)


def attempt(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERRY_ATTEMPT", str(number))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- whole or not there


def test_a_checkpoint_is_whole_and_has_its_steps_name(folder: Path) -> None:
    with user.checkpoint(20) as made:
        assert made.parent == folder and user.latest_checkpoint() is None
        (made / "deep" / "er").mkdir(parents=True)
        (made / "deep" / "er" / "weights").write_bytes(b"w" * 3_000_000)
        (made / "état").write_text("1")
    assert user.latest_checkpoint() == folder / "step-20"
    assert names(folder) == ["step-20"]
    assert (folder / "step-20" / "deep" / "er" / "weights").stat().st_size == 3_000_000
    manifest = json.loads((folder / "step-20" / on_disk.MANIFEST).read_text())
    assert [file["path"] for file in manifest["files"]] == ["deep/er/weights", "état"] or [
        file["path"] for file in manifest["files"]
    ] == ["état", "deep/er/weights"]
    assert (folder / "step-20").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_before_anything_was_saved_there_is_none_and_no_folder_is_made(folder: Path) -> None:
    assert user.latest_checkpoint() is None
    assert not folder.exists()


def test_a_block_that_raises_leaves_nothing(folder: Path) -> None:
    save(1)
    with contextlib.suppress(RuntimeError), user.checkpoint(2) as made:
        (made / "state").write_text("half")
        raise RuntimeError("no")
    assert names(folder) == ["step-1"]


def test_a_block_that_writes_nothing_leaves_nothing(folder: Path) -> None:
    """Every rank may enter the block where one of them writes."""
    save(1)
    with user.checkpoint(2):
        pass
    assert names(folder) == ["step-1"]


def test_what_is_no_file_is_refused_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="neither a file nor a folder"), user.checkpoint(1) as made:
        os.mkfifo(made / "pipe")
    assert names(folder) == []


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_process_that_is_killed_while_saving_leaves_nothing_that_counts(
    folder: Path, moment: str
) -> None:
    save(1)
    script = (
        f"{HEAD}import os, signal\n"
        f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with user.checkpoint(2) as made: (made / 'state').write_text('2')\n"
    )
    command = [sys.executable, "-I", "-c", script, str(SOURCE)]
    assert subprocess.run(command, cwd=folder.parent).returncode == -signal.SIGKILL
    assert user.latest_checkpoint() == folder / "step-1"
    left = next(name for name in names(folder) if name.startswith(on_disk.OURS))
    save(2)
    assert (folder / left).exists()  # it may be another's that has only begun
    os.utime(folder / left, (1, 1))
    save(3)
    assert names(folder) == ["step-1", "step-2", "step-3"]


def test_one_that_is_being_written_is_not_swept(folder: Path) -> None:
    with user.checkpoint(1) as made:
        (made / "state").write_text("1")
        os.utime(made, (1, 1))
        save(2)
    assert names(folder) == ["step-1", "step-2"]


# --- the newest


def test_the_newest_is_of_the_latest_attempt_then_of_the_highest_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(1, monkeypatch)
    for step in (9, 10, 8):
        save(step)
    assert user.latest_checkpoint() == folder / "step-10"
    attempt(2, monkeypatch)
    save(7)
    assert user.latest_checkpoint() == folder / "step-7"


def test_a_step_that_is_saved_again_replaces_the_first(folder: Path) -> None:
    for text in ("one", "two", "three"):
        save(5, text)
    found = user.latest_checkpoint()
    assert found is not None and (found / "state").read_text() == "three"
    assert len(names(folder)) == 1


def test_without_a_step_it_counts_on(folder: Path) -> None:
    save(None)
    save(7)
    save(None)
    assert names(folder) == ["step-0", "step-7", "step-8"]


@pytest.mark.parametrize(
    ("tear", "why"),
    [
        (lambda path: (path / "state").write_text("xx"), "has 2 bytes, not 1"),
        (lambda path: (path / "state").write_text("y"), "has other bytes"),
        (lambda path: (path / "state").unlink(), "No such file"),
        (lambda path: (path / on_disk.MANIFEST).write_text('{"step"'), "no readable manifest"),
        (lambda path: (path / on_disk.MANIFEST).unlink(), "no readable manifest"),
    ],
    ids=["size", "bytes", "gone", "torn", "none"],
)
def test_a_torn_one_is_skipped_with_a_line(
    folder: Path,
    tear: Callable[[Path], object],
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(1)
    save(2)
    tear(folder / "step-2")
    assert user.latest_checkpoint() == folder / "step-1"
    said = capsys.readouterr().err
    assert said.startswith("wherry: checkpoint step-2 is skipped: ") and why in said
    assert said.count("\n") == 1


def test_what_a_program_writes_by_itself_is_left_alone(folder: Path) -> None:
    save(1)
    (folder / "step-3").mkdir()
    (folder / "step-3" / "mine").touch()
    (folder / "last.pt").touch()
    save(2, keep=1)
    assert names(folder) == ["last.pt", "step-2", "step-3"]
    save(3)
    assert (folder / "step-3" / "mine").exists()
    assert user.latest_checkpoint() == folder / "step-3.2"


# --- how many are kept


def test_only_as_many_are_kept_as_were_asked_for(folder: Path) -> None:
    for step in range(5):
        save(step, keep=2)
    assert names(folder) == ["step-3", "step-4"]


def test_the_newest_complete_one_is_never_removed(folder: Path) -> None:
    save(9)
    save(10)
    (folder / "step-10" / "state").unlink()
    save(3, keep=1)
    assert names(folder) == ["step-10", "step-9"]
    assert user.latest_checkpoint() == folder / "step-9"


@pytest.mark.parametrize(
    "options",
    [{"step": -1}, {"step": 1, "keep": 0}, {"shard": 0}, {"step": 1, "shard": 2, "shards": 2}],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    folder: Path, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"step|keep"):
        user.checkpoint(**options)
    assert not folder.exists()


# --- shards


def test_shards_count_once_all_of_an_attempt_are_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHERRY_WORLD_SIZE", "2")
    attempt(1, monkeypatch)
    save(1, shard=0)
    assert user.latest_checkpoint() is None
    assert "lacks shards of 2: 1" in capsys.readouterr().err
    save(1, shard=1)
    assert user.latest_checkpoint() == folder / "step-1"
    assert names(folder / "step-1") == ["shard-0", "shard-1"]
    save(2, shard=0)
    attempt(2, monkeypatch)
    save(2, shard=1)
    assert user.latest_checkpoint() == folder / "step-1"
    save(2, shard=0, keep=1)
    assert user.latest_checkpoint() == folder / "step-2"
    assert names(folder) == ["step-2"]


def test_shards_of_another_world_size_do_not_disturb(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(1, monkeypatch)
    for shard in range(3):
        save(1, shard=shard, shards=3)
    attempt(2, monkeypatch)
    for shard in range(2):
        save(1, shard=shard, shards=2)
    assert user.latest_checkpoint() == folder / "step-1"


def test_many_that_save_at_once_do_not_disturb_each_other(folder: Path) -> None:
    def work(number: int) -> None:
        for step in range(10):
            save(step, str(number), keep=3)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = user.latest_checkpoint()
    assert found is not None and found.name.split(".")[0] == "step-9"
    assert not [name for name in names(folder) if name.startswith(on_disk.OURS)]


# --- being asked to end


def script(body: str, tmp_path: Path, python: str = sys.executable) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-I", "-c", HEAD + body, str(SOURCE)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )


@pytest.mark.parametrize("python", interpreters())
def test_after_sigterm_a_loop_can_save_and_leave(python: str, tmp_path: Path) -> None:
    with script(
        "assert not user.stopping(); print('ready', flush=True)\n"
        "while not user.stopping(): pass\n"
        "with user.checkpoint(3) as made: (made / 'state').write_text('3')\n"
        "print(user.latest_checkpoint())\n",
        tmp_path,
        python,
    ) as program:
        assert program.stdout and program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGTERM)
        said, wrong = program.communicate(timeout=30)
    assert (said, wrong) == (f"{tmp_path / 'checkpoints' / 'step-3'}\n", "")
    assert program.returncode == 0


def test_a_forked_child_still_dies_of_sigterm(tmp_path: Path) -> None:
    """Data loaders end their workers so."""
    with script(
        "import os, signal, time\n"
        "user.stopping()\n"
        "if (child := os.fork()) == 0: time.sleep(600)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), user.stopping())\n",
        tmp_path,
    ) as program:
        assert program.communicate(timeout=30) == ("-15 False\n", "")


def test_a_handler_of_the_programs_own_stays(tmp_path: Path) -> None:
    with script(
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n"
        "user.stopping(); os.kill(os.getpid(), signal.SIGTERM); print(user.stopping())\n",
        tmp_path,
    ) as program:
        assert program.communicate(timeout=30) == ("mine\nFalse\n", "")


def test_a_first_call_from_another_thread_changes_nothing(tmp_path: Path) -> None:
    with script(
        "import os, signal, threading, time\n"
        "thread = threading.Thread(target=user.stopping); thread.start(); thread.join()\n"
        "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, user.stopping())\n",
        tmp_path,
    ) as program:
        assert program.communicate(timeout=30) == ("True False\n", "")


def test_the_agents_file_says_it_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "_listening", True)
    monkeypatch.setattr(user, "_asked", False)
    monkeypatch.setenv("WHERRY_STOPPING", str(folder.parent / "stopping"))
    assert not user.stopping()
    (folder.parent / "stopping").touch()
    assert eventually(user.stopping)
