"""Settings: what cannot be is said with its variable before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wherry import settings
from wherry.cli import main
from wherry.errors import InvalidInput


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WHERRY_PORT", "99999"), ("WHERRY_PORT", "-1"), ("WHERRY_PORT", "http"),
        ("WHERRY_HEARTBEAT", "0"), ("WHERRY_LEASE", "-3"), ("WHERRY_GRACE", "nan"),
        ("WHERRY_LOG_LEVEL", "loud"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput, match=f"{variable}={value!r}") as caught:
        settings.check()
    assert "the default is" in caught.value.hint


def test_every_default_is_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in settings.SETTINGS:
        monkeypatch.setenv(setting.variable, str(setting.default))
    settings.check()


@pytest.mark.parametrize(
    "words", [("ps",), ("up",), ("down",), ("run", "x.py"), ("run", "-d", "x.py")]
)
@pytest.mark.parametrize("home", ["/proc/x", "file", "file/below"])
def test_a_home_that_cannot_be_used_is_a_mistake_and_no_defect(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    home: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "x.py").write_text("")
    monkeypatch.setenv("WHERRY_HOME", home)
    status = main.invoke(words)
    said = capfd.readouterr().err
    if words == ("down",):
        assert status == 0 and "no control plane was running" in said
    else:
        assert status == 2 and "WHERRY_HOME" in said, said


def test_a_port_that_cannot_be_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wherry.cli.main", "up"],
        env={"WHERRY_HOME": str(tmp_path / "home"), "WHERRY_PORT": "99999"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "WHERRY_PORT" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "home/server.log").exists()
