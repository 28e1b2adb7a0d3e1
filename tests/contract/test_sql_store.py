"""Every promise of the store, kept over SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.store.sql import SqlStore
from wherry.testing.stores import OpenStore, StoreContract


class TestSqlStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqlStore.open(f"sqlite:///{tmp_path}/wherry.db")
