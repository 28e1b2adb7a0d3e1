"""The local back end keeps the contract of every back end, with real agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from wherry.backends.local.backend import LocalBackend
from wherry.backends.local.cgroups import Cgroups
from wherry.core.run import AttemptId
from wherry.testing.backends import BackendContract
from wherry.testing.stage import BackendFactory


class LocalPlace(BackendContract):
    """The contract over a folder of this machine."""

    home: Path

    def enter(self, tmp_path: Path) -> Path:
        """The home of this test."""
        self.home = tmp_path / "home"
        return self.home

    @pytest.fixture
    def backend_factory(self, agent: Path, tmp_path: Path) -> BackendFactory:
        return lambda: LocalBackend(self.enter(tmp_path), agent=agent)

    @pytest.fixture
    def broken_factory(self, agent: Path, tmp_path: Path) -> BackendFactory:
        missing = str(tmp_path / "no-python")
        return lambda: LocalBackend(self.enter(tmp_path), agent=agent, python=missing)

    def plant_foreign(self) -> None:
        attempts = self.home / "attempts"
        attempts.mkdir(parents=True)
        for name in ("lost+found", "notes", "r1-0", "r1-01", "r1--1", "-1", ".r1-1"):
            (attempts / name).mkdir()
        (attempts / "r2-1").write_text("a file is no attempt")

    def traces(self, attempt: AttemptId) -> Sequence[str]:
        groups = Cgroups.detect()
        roots = {self.home, groups.memory, groups.cpu}
        return [str(path) for root in roots if root for path in root.rglob(f"*{attempt}*")]


class TestLocalBackend(LocalPlace):
    """The local back end."""
