"""
What a back end promises that can launch one rank anew: ``Capability.REPLACE``. One that cannot
refuses the groups that need it.
"""

from __future__ import annotations

import pytest

from wherry.backends.base import Backend, Capability
from wherry.errors import CapabilityMissing
from wherry.testing.stage import Bench, renewed


class ReplaceContract:
    """Part of ``BackendContract``."""

    def test_a_newer_incarnation_takes_the_place_of_one_rank_alone(self, bench: Bench) -> None:
        backend = self._replacing(bench)
        request = bench.request(workers=2, group="pool")
        backend.launch(backend.plan(request))
        spared, replaced = bench.leash.catch_all(2)
        anew = bench.factory().plan(renewed(request, 1))
        bench.factory().launch(anew)
        assert replaced.gone()
        successor = bench.leash.catch()
        seen = bench.factory().observe(request.attempt)
        assert [(r.rank, r.incarnation, r.phase) for r in seen.ranks] == [
            (0, 1, "running"),
            (1, 2, "running"),
        ]
        bench.factory().launch(anew)
        assert not spared.gone(0.001) and not successor.gone(0.001)
        for program in (spared, successor):
            program.tell()
        bench.ended(request.attempt)
        assert bench.leash.started() == 3

    def test_an_older_incarnation_does_not_come_back(self, bench: Bench) -> None:
        backend = self._replacing(bench)
        request = bench.request(workers=1, group="pool")
        backend.launch(backend.plan(request))
        bench.leash.catch()
        backend.launch(backend.plan(renewed(request, 0)))
        program = bench.leash.catch()
        bench.factory().launch(bench.factory().plan(request))
        (rank,) = bench.factory().observe(request.attempt).ranks
        assert (rank.incarnation, rank.phase) == (2, "running")
        assert not program.gone(0.001)

    def test_nobody_is_replaced_in_an_attempt_that_is_stopped(self, bench: Bench) -> None:
        backend = self._replacing(bench)
        request = bench.request(workers=1, group="pool")
        backend.launch(backend.plan(request))
        bench.leash.catch()
        backend.stop(request.attempt, 10.0)
        bench.ended(request.attempt)
        backend.launch(backend.plan(renewed(request, 0)))
        assert bench.phases(request.attempt) == ["ended"]
        assert bench.strays() == 0

    def _replacing(self, bench: Bench) -> Backend:
        """The back end, where it can replace a rank; else it refuses what needs that."""
        backend = bench.factory()
        if Capability.REPLACE not in backend.capabilities:
            with pytest.raises(CapabilityMissing):
                backend.plan(bench.request(workers=2, group="pool"))
            pytest.skip("this back end declares that it cannot replace a rank")
        return backend
