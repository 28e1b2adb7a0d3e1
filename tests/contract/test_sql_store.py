"""Every promise of the store, kept over SQLite."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from wherry.store.sql import SqlStore
from wherry.testing.stores import OpenStore, StoreContract
from wherry.testing.stores.machine import check_against_model


class TestSqlStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqlStore.open(f"sqlite:///{tmp_path}/wherry.db")


def test_in_any_order_of_calls_it_answers_as_a_model_does(tmp_path: Path) -> None:
    numbers = itertools.count()

    def place() -> OpenStore:
        return functools.partial(SqlStore.open, f"sqlite:///{tmp_path}/{next(numbers)}.db")

    check_against_model(place, examples=12, steps=30)
