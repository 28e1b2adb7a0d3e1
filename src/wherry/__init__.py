"""
Wherry: build once, run everywhere.

The public names. Each is imported when it is first used, so that ``import wherry`` in a training
script costs next to nothing. ``tests/unit/test_public_names.py`` pins them.
"""

from __future__ import annotations

from importlib import import_module

from wherry._version import __version__

TYPE_CHECKING = False  # as in typing, whose import would cost more than all the rest
if TYPE_CHECKING:
    from wherry import errors
    from wherry.agent.user import (
        checkpoint_dir,
        output_dir,
        params,
        rank,
        report,
        world_size,
    )
    from wherry.core.job import JobSpec
    from wherry.errors import WherryError
    from wherry.sdk.client import Client
    from wherry.sdk.connect import connect
    from wherry.sdk.executor import Executor
    from wherry.sdk.map import map  # noqa: A004
    from wherry.sdk.rehearse import rehearse
    from wherry.sdk.runs import Run, run

__all__ = [
    "Client",
    "Executor",
    "JobSpec",
    "Run",
    "WherryError",
    "__version__",
    "checkpoint_dir",
    "connect",
    "errors",
    "map",
    "output_dir",
    "params",
    "rank",
    "rehearse",
    "report",
    "run",
    "world_size",
]

_HOME = {
    "Client": "wherry.sdk.client",
    "Executor": "wherry.sdk.executor",
    "JobSpec": "wherry.core.job",
    "Run": "wherry.sdk.runs",
    "WherryError": "wherry.errors",
    "checkpoint_dir": "wherry.agent.user",
    "connect": "wherry.sdk.connect",
    "map": "wherry.sdk.map",
    "output_dir": "wherry.agent.user",
    "params": "wherry.agent.user",
    "rank": "wherry.agent.user",
    "rehearse": "wherry.sdk.rehearse",
    "report": "wherry.agent.user",
    "run": "wherry.sdk.runs",
    "world_size": "wherry.agent.user",
}
#: They are folders that are made when they are asked for, so they are asked for each time.
_FOLDERS = {"checkpoint_dir", "output_dir"}


if not TYPE_CHECKING:  # or every name would be known to type checkers

    def __getattr__(name: str) -> object:
        if name == "errors":
            return import_module("wherry.errors")
        if name not in _HOME:
            raise AttributeError(f"module 'wherry' has no attribute {name!r}")
        value: object = getattr(import_module(_HOME[name]), name)
        if name not in _FOLDERS:
            globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
