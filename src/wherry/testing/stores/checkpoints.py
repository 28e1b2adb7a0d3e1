"""
What a store promises of checkpoints that came by blobs.
"""

from __future__ import annotations

from typing import Any

import pytest

from wherry.core.checkpoint import Checkpoint, Kept
from wherry.core.run import AttemptId
from wherry.core.states import RankState, RunState
from wherry.errors import StaleToken
from wherry.store.base import Exit, Store
from wherry.testing.stores.data import blob, started


def kept(*paths: str, number: int = 1) -> tuple[Kept, ...]:
    """Files with these paths, all of one content."""
    return tuple(Kept(path=path, digest=blob(number), size=1) for path in paths)


def saved(attempt: AttemptId, step: int, **fields: Any) -> Checkpoint:
    """A checkpoint as rank 0 sends it; its content is its step."""
    shard = f"/shard-{fields['shard']}" if fields.get("shard") is not None else ""
    usual: dict[str, Any] = {"rank": 0, "files": kept("state", number=step + 1)}
    return Checkpoint(
        **{
            "run": attempt.run,
            "attempt": attempt.number,
            "name": f"step-{step}{shard}",
            "step": step,
            **usual,
            **fields,
        }
    )


def again(store: Store, attempt: AttemptId) -> AttemptId:
    """The attempt after this one, which has failed."""
    for rank in store.attempt(attempt).ranks:
        end = Exit(state=RankState.FAILED, time=2.0)
        store.move_rank(attempt, rank.rank, RankState.FAILED, exit=end)
    assert store.end_attempt(attempt, 2.0)
    assert store.move_run(attempt.run, RunState.QUEUED)
    assert store.create_attempt(attempt.run, attempt.number + 1, world_size=2, time=3.0)
    return AttemptId(attempt.run, attempt.number + 1)


def names(store: Store, attempt: AttemptId) -> list[str]:
    """Of all checkpoints of the run."""
    return [one.name for one in store.checkpoints(attempt.run)]


class CheckpointContract:
    """The newest complete ones stay, and nobody else's."""

    def test_a_checkpoint_comes_back_as_it_was_kept(self, store: Store) -> None:
        attempt = started(store)
        made = saved(attempt, 3, created=5.0, files=kept("a", "deep/b"))
        store.keep_checkpoint(made, 1)
        assert store.checkpoints(attempt.run) == [made]
        assert list(store.referenced_blobs()) == [blob(1)]
        assert store.checkpoints("r0123") == []

    def test_the_newest_complete_ones_are_kept_and_their_blobs(self, store: Store) -> None:
        attempt = started(store)
        for step in (1, 2, 3):
            store.keep_checkpoint(saved(attempt, step), 1)
        assert names(store, attempt) == ["step-2", "step-3"]
        assert sorted(store.referenced_blobs()) == [blob(3), blob(4)]
        store.keep_checkpoint(saved(attempt, 4), 1, most=1)
        assert names(store, attempt) == ["step-4"]

    def test_that_of_a_later_attempt_is_newer_whatever_its_step(self, store: Store) -> None:
        first = started(store)
        for step in (8, 9):
            store.keep_checkpoint(saved(first, step), 1)
        second = again(store, first)
        store.keep_checkpoint(saved(second, 1), 1)
        assert names(store, second) == ["step-9", "step-1"]

    def test_shards_count_as_one_once_all_are_there(self, store: Store) -> None:
        attempt = started(store)
        for step in (1, 2, 3):
            for shard in (0, 1):
                if (step, shard) != (3, 1):
                    one = saved(attempt, step, shard=shard, shards=2, rank=shard)
                    store.keep_checkpoint(one, 1, most=1)
        assert names(store, attempt) == ["step-2/shard-0", "step-2/shard-1", "step-3/shard-0"]
        store.keep_checkpoint(saved(attempt, 3, shard=1, shards=2, rank=1), 1, most=1)
        assert names(store, attempt) == ["step-3/shard-0", "step-3/shard-1"]

    def test_members_of_a_pool_have_each_their_own(self, store: Store) -> None:
        attempt = started(store)
        for step in (1, 2):
            for rank in (0, 1):
                made = saved(attempt, step, member=rank, rank=rank)
                store.keep_checkpoint(made, 1, most=1)
        found = [(one.member, one.name) for one in store.checkpoints(attempt.run)]
        assert found == [(0, "step-2"), (1, "step-2")]

    def test_own_files_are_those_of_their_last_writers(self, store: Store) -> None:
        attempt = started(store)

        def own(files: tuple[Kept, ...], gone: tuple[str, ...] = ()) -> None:
            made = Checkpoint(run=attempt.run, attempt=1, rank=0, name="", files=files)
            store.keep_checkpoint(made, 1, gone=gone)

        own(kept("a", "b", "c"))
        own(kept("b", number=2), gone=("c", "unknown"))
        [now] = store.checkpoints(attempt.run)
        assert [(file.path, file.digest) for file in now.files] == [("a", blob(1)), ("b", blob(2))]
        for step in (1, 2, 3):
            store.keep_checkpoint(saved(attempt, step), 1)
        assert sorted(names(store, attempt)) == ["", "step-2", "step-3"]

    @pytest.mark.parametrize("why", ["incarnation", "lost", "attempt", "rank"])
    def test_who_was_replaced_keeps_nothing(self, store: Store, why: str) -> None:
        attempt = started(store)
        store.keep_checkpoint(saved(attempt, 1), 1)
        late, incarnation = saved(attempt, 2), 1
        if why == "incarnation":
            assert store.replace_rank(attempt, 0, 1)
        elif why == "lost":
            store.move_rank(attempt, 0, RankState.LOST)
        elif why == "attempt":
            again(store, attempt)
        else:
            late = saved(attempt, 2, rank=7)
        with pytest.raises(StaleToken):
            store.keep_checkpoint(late, incarnation)
        assert names(store, attempt) == ["step-1"]

    def test_a_run_takes_its_checkpoints_along(self, store: Store) -> None:
        attempt = started(store)
        store.keep_checkpoint(saved(attempt, 1), 1)
        store.end_attempt(attempt, 2.0)
        assert store.move_run(attempt.run, RunState.FAILED)
        store.delete_run(attempt.run)
        assert store.checkpoints(attempt.run) == []
        assert list(store.referenced_blobs()) == []
