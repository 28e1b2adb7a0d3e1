"""
Every promise of ``store.base.Store`` as a test, for whoever writes a store::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path / "rows")

``open_store`` opens the same rows each time; an object is closed before the next is opened. The
whole against a model: ``wherry.testing.stores.machine``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wherry.store.base import Store
from wherry.testing.stores.checkpoints import CheckpointContract
from wherry.testing.stores.data import OpenStore
from wherry.testing.stores.groups import GroupContract
from wherry.testing.stores.ranks import RankContract
from wherry.testing.stores.reports import ReportContract
from wherry.testing.stores.runs import RunContract

__all__ = ["OpenStore", "StoreContract"]


class StoreContract(RunContract, RankContract, GroupContract, ReportContract, CheckpointContract):
    """Every promise. Override ``open_store``."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """How to open the store under test."""
        raise NotImplementedError("override open_store")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[Store]:
        """The store, open."""
        store = open_store()
        yield store
        store.close()
