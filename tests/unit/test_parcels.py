"""Values on their way: pickled once, large ones beside, by digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.agent import parcels
from wherry.agent.parcels import Cache, Source, pack, unpack


class Store:
    """Blobs in memory; counts how often each came."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.kept: list[str] = []

    def keep(self, source: Source) -> None:
        data = b"".join(source.pieces())
        assert hashlib.sha256(data).hexdigest() == source.digest
        assert len(data) == source.size
        self.blobs[source.digest] = data
        self.kept.append(source.digest)

    def fetch(self, digest: str) -> bytearray:
        return bytearray(self.blobs[digest])


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.mark.parametrize(
    "value", [1, "text", [1, {"a": (2, None)}], b"x" * 1000, np.arange(10)], ids=str
)
def test_what_is_small_travels_as_it_is(store: Store, value: Any) -> None:
    found = unpack(pack(value, store.keep), store.fetch)
    assert np.array_equal(found, value)
    assert store.kept == []


def test_arrays_lie_beside_the_pickle_and_come_back_writable(store: Store) -> None:
    array = np.arange(100_000.0)
    body, buffers = pack([array, {"again": array, "other": np.ones(50_000)}], store.keep)
    assert isinstance(body, bytes) and len(body) < 1000
    assert len(buffers) == 2
    found = unpack((body, buffers), store.fetch)
    assert np.array_equal(found[0], array)
    assert found[0] is found[1]["again"]
    found[0][0] = 7


@pytest.mark.parametrize("order", ["C", "F"])
def test_equal_arrays_are_one_blob_and_a_memo_spares_a_second_look(
    store: Store, order: Any
) -> None:
    array = np.asarray(np.arange(90_000.0).reshape(300, 300), order=order)
    memo: parcels.Memo = {}
    first = pack((array, 1), store.keep, memo=memo)
    second = pack((array, 2), store.keep, memo=memo)
    assert first[1] == second[1]
    assert len(store.kept) == 1
    assert np.array_equal(unpack(second, store.fetch)[0], array)
    pack((array.copy(order="K"), 3), store.keep)  # another of the same content, without a memo
    assert set(store.kept) == {store.kept[0]}


@pytest.mark.parametrize(
    "large", [b"z" * 5_000_000, bytearray(b"z" * 300_000), "\xe4\ud800" * 200_000], ids=type
)
def test_large_bytes_and_text_lie_apart_so_that_they_are_sent_once(
    store: Store, large: Any
) -> None:
    fixed: parcels.Memo = {}
    first = pack([(large, 1), (large, 2)], store.keep, fixed=fixed)
    second = pack([(large, 3)], store.keep, fixed=fixed)
    assert len(set(store.kept)) == 1
    assert all(isinstance(body, bytes) and len(body) < 1000 for body, _ in (first, second))
    assert unpack(first, store.fetch) == [(large, 1), (large, 2)]
    assert unpack(second, store.fetch) == [(large, 3)]


def test_a_pickle_of_many_things_is_a_blob_itself(store: Store) -> None:
    many = [str(n) for n in range(100_000)]
    body, _ = pack(many, store.keep)
    assert isinstance(body, str)
    assert unpack((body, []), store.fetch) == many


def test_a_closure_over_much_travels_by_value_and_the_much_apart(store: Store) -> None:
    data = b"y" * 500_000
    body, _ = pack(lambda: len(data), store.keep)
    assert isinstance(body, bytes) and len(body) < 5000
    assert unpack((body, []), store.fetch)() == 500_000


def test_a_lambda_and_a_closure_travel_by_value(store: Store) -> None:
    three = 3
    assert unpack(pack(lambda x: x + three, store.keep), store.fetch)(4) == 7


def test_what_is_of_main_travels_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pickle, sys\n"
        "from wherry.agent import parcels\n"
        "class Point:\n"
        "    x = 1\n"
        "data = parcels.pack([Point()] * 3, lambda _: None)\n"
        "sys.stdout.buffer.write(pickle.dumps(data))\n"
    )
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    import pickle

    found = unpack(pickle.loads(done.stdout), lambda _: b"")
    assert [point.x for point in found] == [1, 1, 1]


def test_the_name_of_main_is_seen_across_pieces() -> None:
    spool = parcels._Spool(None)
    spool.write(b"a__ma")
    assert not spool.of_main
    spool.write(b"in__")
    assert spool.of_main


def test_what_cannot_be_pickled_says_so(store: Store) -> None:
    with pytest.raises(TypeError, match="lock"):
        pack([threading.Lock()], store.keep)


def cache(folder: Path, store: Store, limit: int = 1 << 30) -> Cache:
    def download(digest: str, write: Callable[[bytes], Any]) -> None:
        store.kept.append("got " + digest)
        data = store.blobs[digest]
        write(data[:10])
        write(data[10:])

    return Cache(str(folder), download, limit)


def blob(store: Store, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    store.blobs[digest] = data
    return digest


def test_a_blob_is_fetched_once_for_all_workers_of_a_machine(tmp_path: Path, store: Store) -> None:
    digest = blob(store, b"d" * 100)
    found = cache(tmp_path, store).fetch(digest)
    assert bytes(found) == b"d" * 100
    assert bytes(cache(tmp_path, store).fetch(digest)) == b"d" * 100
    assert store.kept == [f"got {digest}"]


def test_who_writes_to_it_writes_to_a_copy(tmp_path: Path, store: Store) -> None:
    digest, cached = blob(store, b"d" * 100), cache(tmp_path, store)
    mine = cached.fetch(digest)
    mine[0] = 0
    assert bytes(cached.fetch(digest)) == b"d" * 100


def test_what_was_used_longest_ago_goes_and_who_has_it_keeps_it(
    tmp_path: Path, store: Store
) -> None:
    cached = cache(tmp_path, store, limit=250)
    old, used, new = (blob(store, bytes([i]) * 100) for i in range(3))
    held = cached.fetch(old)
    cached.fetch(used)
    for seconds, digest in enumerate((old, used)):
        os.utime(tmp_path / digest, (1000 + seconds, 1000 + seconds))
    cached.fetch(new)
    assert not (tmp_path / old).exists()
    assert (tmp_path / used).exists()
    assert bytes(held) == b"\0" * 100
    assert bytes(cached.fetch(old)) == b"\0" * 100


def test_a_blob_that_arrives_wrong_is_not_used(tmp_path: Path, store: Store) -> None:
    digest = blob(store, b"right")
    store.blobs[digest] = b"wrong"
    with pytest.raises(OSError, match="another content"):
        cache(tmp_path, store).fetch(digest)
    assert not (tmp_path / digest).exists()
