"""
Everything that can be set, as one table.

A value comes from the environment (``WHERRY_`` + the name in capitals), else from the default.
``docs/reference/settings.md`` is generated from this table.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import InvalidInput


@dataclass(frozen=True)
class Setting:
    """One row: what it is called, what it is when nobody says, and what for."""

    name: str
    default: Any
    unit: str
    help: str
    least: float = 0.0  #: of a number
    most: float = float("inf")
    choices: tuple[str, ...] = ()  #: of a word; in any case

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "WHERRY_" + self.name.upper()


SETTINGS: tuple[Setting, ...] = (
    Setting("home", "~/.wherry", "folder", "where the embedded control plane keeps its state"),
    Setting("host", "127.0.0.1", "address", "where the control plane listens; loopback only"),
    Setting(
        "port",
        0,
        "port",
        "0: a free one, the same again after a restart where possible",
        most=65535,
    ),
    Setting("context", "", "name", "the control plane to talk to; empty: the one of this machine"),
    Setting(
        "log_level",
        "info",
        "level",
        "how much the control plane writes to server.log",
        choices=("debug", "info", "warning", "error", "critical"),
    ),
    Setting("driver_lease", 60.0, "seconds", "a map whose driver is silent for so long is stopped"),
    Setting("heartbeat", 5.0, "seconds", "how often an agent says that it is alive", least=0.01),
    Setting("lease", 9.0, "seconds", "silence after which a rank is lost: within two heartbeats"),
    Setting("backoff", 1.0, "seconds", "before the first retry; doubled with each, up to 300"),
    Setting("elastic_settle", 3.0, "seconds", "how long an elastic group waits for one more"),
    Setting("grace", 10.0, "seconds", "between SIGTERM and SIGKILL when a run is stopped"),
    Setting("stall", 600.0, "seconds", "no output, metric or CPU: the run is flagged; 0: never"),
    Setting("barrier_timeout", 600.0, "seconds", "how long ranks wait for each other"),
    Setting(
        "checkpoints", "folder", "way", "how they survive here: folder, or blobs as on a cluster"
    ),
    Setting("max_file", 10 * 2**20, "bytes", "a larger file does not travel with the code"),
    Setting("report_batch", 8 * 2**20, "bytes", "the most that an agent reports in one request"),
    Setting("spool_limit", 4 * 2**30, "bytes", "unsent reports a rank may keep on disk"),
    Setting("retention", 0.0, "days", "finished runs older than this are pruned; 0: never"),
    Setting("cache_retention", 30.0, "days", "environments unused for so long are pruned"),
    Setting("idempotency_retention", 1.0, "days", "how long idempotency keys are remembered"),
    Setting("uv", "", "path", "the uv to use; empty: the one installed with Wherry"),
)

BY_NAME: dict[str, Setting] = {s.name: s for s in SETTINGS}


def get(name: str) -> Any:
    """
    The value of a setting, of the type of its default.

    :raises InvalidInput: where the environment variable does not hold such a value.
    """
    setting = BY_NAME[name]
    raw = os.environ.get(setting.variable)
    if raw is None or raw == "":
        return setting.default
    kind = type(setting.default)
    try:
        value = kind(raw)
        if kind in (int, float) and not setting.least <= value <= setting.most:
            raise ValueError
        if setting.choices and value.lower() not in setting.choices:
            raise ValueError
        return value
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"{setting.variable}={raw!r} is not a value in {setting.unit}",
            hint=f"{setting.help}; {_range(setting)}the default is {setting.default!r}",
        ) from None


def _range(setting: Setting) -> str:
    if setting.choices:
        return f"one of {', '.join(setting.choices)}; "
    if not isinstance(setting.default, int | float):
        return ""
    return f"from {setting.least:g}" + (f" to {setting.most:g}; " if setting.most < 1e9 else "; ")


def check() -> None:
    """:raises InvalidInput: for the first setting in the environment that has no such value."""
    for setting in SETTINGS:
        get(setting.name)


def home() -> Path:
    """The home of the embedded control plane, absolute. It need not exist."""
    return Path(str(get("home"))).expanduser().absolute()


def make_home(folder: Path) -> None:
    """
    Make the folder, private to this person, where it is not there.

    :raises InvalidInput: where it cannot be made or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
        why = "it cannot be written to"
    except OSError as error:
        why = error.strerror or str(error)
    raise InvalidInput(
        f"the home {str(folder)!r} cannot be used: {why}",
        hint="set WHERRY_HOME to a folder of your own, or unset it: then it is ~/.wherry",
    )
