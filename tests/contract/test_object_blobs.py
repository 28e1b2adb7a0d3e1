"""Every promise of the blobs, kept in a folder and in memory: another store, the same code."""

from __future__ import annotations

from pathlib import Path

import pytest
from obstore.store import MemoryStore

from wherry.blobs.objects import ObjectBlobs
from wherry.testing.blobs import BlobContract, OpenBlobs


class TestFolderBlobs(BlobContract):
    @pytest.fixture
    def open_blobs(self, tmp_path: Path) -> OpenBlobs:
        return lambda: ObjectBlobs.open(tmp_path / "blobs")


class TestObjectStoreBlobs(BlobContract):
    """What a bucket gets: no folders, no renames."""

    @pytest.fixture
    def open_blobs(self) -> OpenBlobs:
        bucket = MemoryStore()
        return lambda: ObjectBlobs(bucket)
