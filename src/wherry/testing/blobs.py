"""
Every promise of ``blobs.base.Blobs`` as a test, for whoever keeps blobs somewhere else::

    class TestMyBlobs(BlobContract):
        @pytest.fixture
        def open_blobs(self, tmp_path):
            return lambda: MyBlobs(tmp_path / "blobs")

``open_blobs`` opens the same blobs each time; several objects may be open at once.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator

import pytest

from wherry.blobs.base import Blobs
from wherry.errors import InvalidInput, NotFound
from wherry.testing.stores.data import together

OpenBlobs = Callable[[], Blobs]

SMALL = b"a few bytes"
LARGE = random.Random(0).randbytes(9 * 2**20 + 17)  # more than one part of a store
SIZES = pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])


def digest_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def pieces_of(data: bytes, size: int = 300_000) -> Iterator[bytes]:
    """The bytes as they come from a network."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


def put(blobs: Blobs, data: bytes) -> str:
    """Store bytes; their digest."""
    blobs.put(digest_of(data), pieces_of(data))
    return digest_of(data)


class BlobContract:
    """Every promise. Override ``open_blobs``."""

    @pytest.fixture
    def open_blobs(self) -> OpenBlobs:
        """How to open the blobs under test."""
        raise NotImplementedError("override open_blobs")

    @pytest.fixture
    def blobs(self, open_blobs: OpenBlobs) -> Blobs:
        """The blobs, open."""
        return open_blobs()

    @SIZES
    def test_what_was_put_comes_back(self, blobs: Blobs, data: bytes) -> None:
        digest = digest_of(data)
        assert blobs.put(digest, pieces_of(data)) == len(data)
        assert b"".join(blobs.get(digest)) == data
        assert blobs.size(digest) == len(data)
        assert blobs.missing([digest]) == []

    @SIZES
    def test_put_again_is_harmless(self, blobs: Blobs, data: bytes) -> None:
        put(blobs, data)
        put(blobs, data)
        assert b"".join(blobs.get(digest_of(data))) == data
        assert len(list(blobs.all())) == 1

    @SIZES
    def test_bytes_of_another_digest_are_refused_and_nothing_is_left(
        self, blobs: Blobs, data: bytes
    ) -> None:
        claimed = digest_of(b"something else")
        with pytest.raises(InvalidInput, match=claimed):
            blobs.put(claimed, pieces_of(data))
        assert blobs.missing([claimed, digest_of(data)]) == [claimed, digest_of(data)]
        assert list(blobs.all()) == []

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_a_source_that_is_cut_off_leaves_nothing(self, blobs: Blobs, data: bytes) -> None:
        def cut() -> Iterator[bytes]:
            yield from pieces_of(data)
            raise EOFError("the pack was cut off")

        with pytest.raises(EOFError):
            blobs.put(digest_of(data), cut())
        assert blobs.missing([digest_of(data)]) == [digest_of(data)]
        assert list(blobs.all()) == []

    def test_an_error_of_the_source_is_not_taken_for_one_of_the_blobs(self, blobs: Blobs) -> None:
        def gone() -> Iterator[bytes]:
            yield SMALL
            raise FileNotFoundError("gone")

        with pytest.raises(FileNotFoundError, match="gone"):
            blobs.put(digest_of(SMALL), gone())

    def test_a_blob_may_be_the_source_of_another_put(
        self, blobs: Blobs, open_blobs: OpenBlobs
    ) -> None:
        digest = put(blobs, LARGE)
        assert open_blobs().put(digest, blobs.get(digest)) == len(LARGE)
        assert b"".join(blobs.get(digest)) == LARGE

    def test_bad_bytes_do_not_harm_a_blob_that_is_there(self, blobs: Blobs) -> None:
        digest = put(blobs, LARGE)
        with pytest.raises(InvalidInput):
            blobs.put(digest, pieces_of(LARGE[:-1] + b"?"))
        assert b"".join(blobs.get(digest)) == LARGE

    def test_a_blob_is_not_seen_before_it_is_whole(
        self, blobs: Blobs, open_blobs: OpenBlobs
    ) -> None:
        other, digest = open_blobs(), digest_of(LARGE)

        def watched() -> Iterator[bytes]:
            for piece in pieces_of(LARGE):
                assert other.missing([digest]) == [digest]
                assert list(other.all()) == []
                yield piece

        blobs.put(digest, watched())
        assert other.missing([digest]) == []

    def test_pieces_have_at_most_a_mebibyte(self, blobs: Blobs) -> None:
        digest = put(blobs, LARGE)
        assert max(len(piece) for piece in blobs.get(digest)) <= 2**20

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 0), (0, 5), (3, None), (3, 2**20), (2**20, 2**20 + 1), (len(LARGE) - 2, 99)],
    )
    def test_a_part_is_the_same_part(self, blobs: Blobs, offset: int, length: int | None) -> None:
        digest = put(blobs, LARGE)
        end = len(LARGE) if length is None else offset + length
        assert b"".join(blobs.get(digest, offset=offset, length=length)) == LARGE[offset:end]

    @pytest.mark.parametrize("data", [b"", SMALL], ids=["empty", "small"])
    def test_behind_the_end_there_is_nothing(self, blobs: Blobs, data: bytes) -> None:
        digest = put(blobs, data)
        assert list(blobs.get(digest, offset=len(data))) == []
        assert list(blobs.get(digest, offset=len(data) + 10, length=5)) == []

    def test_an_unknown_blob_is_not_found_before_the_first_piece(self, blobs: Blobs) -> None:
        unknown = digest_of(b"unknown")
        with pytest.raises(NotFound, match=unknown):
            blobs.get(unknown)
        with pytest.raises(NotFound, match=unknown):
            blobs.size(unknown)

    def test_missing_keeps_the_order_and_names_each_once(self, blobs: Blobs) -> None:
        here, one, two = put(blobs, SMALL), digest_of(b"1"), digest_of(b"2")
        assert blobs.missing([two, here, one, two, here]) == [two, one]
        assert blobs.missing([]) == []

    def test_remove_again_is_harmless(self, blobs: Blobs) -> None:
        digest = put(blobs, SMALL)
        blobs.remove(digest)
        blobs.remove(digest)
        assert blobs.missing([digest]) == [digest]
        assert list(blobs.all()) == []

    def test_all_lists_digest_size_and_time(self, blobs: Blobs) -> None:
        before = time.time()
        stored = {put(blobs, data): len(data) for data in (b"", SMALL, LARGE)}
        listed = list(blobs.all())
        assert {digest: size for digest, size, _ in listed} == stored
        # Clocks of file systems are coarse.
        assert all(before - 2 <= when <= time.time() + 2 for _, _, when in listed)

    @pytest.mark.parametrize(
        "text", ["", "../../etc/passwd", "ab/cd", "A" * 64, "a" * 63, "a" * 65]
    )
    def test_what_is_no_digest_is_refused(self, blobs: Blobs, text: str) -> None:
        for call in (
            lambda: blobs.put(text, [SMALL]),
            lambda: blobs.get(text),
            lambda: blobs.size(text),
            lambda: blobs.missing([text]),
            lambda: blobs.remove(text),
        ):
            with pytest.raises(InvalidInput):
                call()

    def test_another_object_sees_the_same_blobs(self, blobs: Blobs, open_blobs: OpenBlobs) -> None:
        digest = put(blobs, SMALL)
        assert b"".join(open_blobs().get(digest)) == SMALL

    def test_many_writers_of_one_blob_leave_it_whole(
        self, blobs: Blobs, open_blobs: OpenBlobs
    ) -> None:
        mine = [blobs, *(open_blobs() for _ in range(3))]
        sizes = together(lambda n: mine[n].put(digest_of(LARGE), pieces_of(LARGE)), times=4)
        assert sizes == [len(LARGE)] * 4
        assert b"".join(blobs.get(digest_of(LARGE))) == LARGE
        assert len(list(blobs.all())) == 1
