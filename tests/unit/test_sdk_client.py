"""The client: one method per call, tolerant answers, logs that neither lose nor repeat a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.unit.fake_plane import Answer, FakePlane, Seen, json, lines, serving
from wherry import errors
from wherry.core.api import Digests, LogLine, Submit
from wherry.core.job import JobSpec
from wherry.core.run import Run
from wherry.core.states import RunState
from wherry.sdk import beside
from wherry.sdk.client import Client

ROOT = "/api/v1"
SPEC = JobSpec(name="x", command=("python", "x.py"))
RUN = Run(id="r1", name="x", owner="me", project="default", spec=SPEC, state=RunState.RUNNING)
DONE = msgspec.structs.replace(RUN, state=RunState.SUCCEEDED)


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    with serving() as plane:
        plane.on(f"GET {ROOT}/runs/r1/wait", json(RUN))
        yield plane


@pytest.fixture
def client(plane: FakePlane) -> Client:
    return plane.client(patience=20)


def line(text: str, **more: Any) -> dict[str, Any]:
    return {"time": 1.0, "attempt": 1, "rank": 0, "stream": "stdout", "text": text, **more}


def cursor(n: int) -> dict[str, int]:
    return {"cursor": n}


def texts(found: Iterator[LogLine]) -> list[str]:
    return [item.text for item in found]


def test_submitting_sends_the_spec_with_a_key_and_gives_the_run(
    plane: FakePlane, client: Client
) -> None:
    plane.on(f"POST {ROOT}/runs", json(RUN, 201))
    ask = Submit(spec=SPEC, foreground=True)
    assert client.submit(ask) == RUN
    assert client.submit(ask) == RUN
    first, second = plane.seen
    assert msgspec.json.decode(first.body, type=Submit) == ask
    assert len({s.headers["idempotency-key"] for s in (first, second)}) == 2


def test_a_submission_goes_on_over_a_break_with_the_same_key(
    plane: FakePlane, client: Client
) -> None:
    client.wait("r1", 0)
    plane.on(f"POST {ROOT}/runs", Answer(b"half", cut=True), json(RUN, 201))
    assert client.submit(Submit(spec=SPEC)) == RUN
    assert len({s.headers["idempotency-key"] for s in plane.seen[1:]}) == 1


def test_keys_that_a_newer_server_sends_are_passed_over(plane: FakePlane, client: Client) -> None:
    newer = msgspec.to_builtins(RUN) | {"colour": "red"}
    newer["spec"] |= {"future": 1}
    plane.on(f"GET {ROOT}/runs", json([newer]))
    assert client.runs() == [RUN]


def test_an_answer_of_another_shape_is_told_as_such(plane: FakePlane, client: Client) -> None:
    plane.on(f"GET {ROOT}/runs", json({"what": 1}))
    with pytest.raises(errors.Internal, match="is not a list"):
        client.runs()


def test_runs_are_asked_for_by_what_was_said_only(plane: FakePlane, client: Client) -> None:
    plane.on(f"GET {ROOT}/runs", json([]))
    client.runs(states=["running", "queued"], tags=["a b"], everyone=True)
    assert plane.seen[-1].query == "state=running&state=queued&tag=a+b&limit=100&all=true"


def test_a_name_is_quoted_in_the_path(plane: FakePlane, client: Client) -> None:
    with pytest.raises(errors.NotFound, match=r"/runs/a%2F..%3Fb$"):
        client.run("a/..?b")


def test_waiting_goes_on_until_the_run_is_finished(plane: FakePlane, client: Client) -> None:
    plane.on(f"GET {ROOT}/runs/last/wait", json(RUN))
    plane.on(f"GET {ROOT}/runs/r1/wait", json(RUN), json(DONE))
    assert client.wait("last") == DONE
    # From the first answer on it is that run, whatever "last" means by then.
    assert [s.path for s in plane.seen] == [f"{ROOT}/runs/{r}/wait" for r in ("last", "r1", "r1")]


def test_waiting_ends_with_its_time(plane: FakePlane, client: Client) -> None:
    assert client.wait("r1", 0.01) == RUN


def test_logs_come_in_order_and_without_blank_lines(plane: FakePlane, client: Client) -> None:
    plane.on(
        f"GET {ROOT}/runs/r1/logs",
        lines(line("a"), cursor(1), None, line("b"), line("ü\u2028"), cursor(3)),
    )
    assert texts(client.logs("r1")) == ["a", "b", "ü\u2028"]


def test_logs_resume_at_the_last_cursor_and_hand_out_no_line_twice(
    plane: FakePlane, client: Client
) -> None:
    plane.on(
        f"GET {ROOT}/runs/r1/logs",
        lines(line("a"), cursor(1), line("b"), cut=True),
        lines(line("b"), line("c"), cut=True),
        lines(line("b"), line("c"), cursor(3), line("d"), cursor(4)),
    )
    assert texts(client.logs("r1", tail=9, ranks=[0])) == ["a", "b", "c", "d"]
    queries = [s.query for s in plane.seen if s.path.endswith("logs")]
    assert queries == ["rank=0&tail=9", "rank=0&after=1", "rank=0&after=1"]


def test_following_goes_on_when_the_server_leaves_before_the_run_has_finished(
    plane: FakePlane, client: Client
) -> None:
    plane.on(f"GET {ROOT}/runs/r1/wait", json(RUN), json(RUN), json(DONE))
    plane.on(
        f"GET {ROOT}/runs/r1/logs",
        lines(line("a"), cursor(1)),
        lines(line("b"), cursor(2)),
        lines(line("the last"), cursor(3)),
    )
    assert texts(client.logs("r1", follow=True)) == ["a", "b", "the last"]
    queries = [s.query for s in plane.seen if s.path.endswith("logs")]
    assert queries == ["follow=true", "follow=true&after=1", "after=2"]


def test_logs_go_on_at_the_next_server_after_a_crash() -> None:
    where: list[str] = []
    with serving() as first, serving() as second:
        for plane in (first, second):
            plane.on(f"GET {ROOT}/runs/r1/wait", json(DONE))
        first.on(f"GET {ROOT}/runs/r1/logs", lines(line("a"), cursor(1), line("b"), cut=True))
        second.on(f"GET {ROOT}/runs/r1/logs", lines(line("b"), cursor(2)))
        client = first.client(patience=20)
        client.http._renew = lambda: type(client.http.endpoint)(second.url, "t2")
        found = client.logs("r1")
        assert next(found).text == "a"
        where += [s.path for s in second.seen]
        assert texts(found) == ["b"]
    assert not where


def test_a_download_that_is_cut_off_is_an_error(plane: FakePlane, client: Client) -> None:
    plane.on(f"GET {ROOT}/runs/r1/files/a%20b/c", Answer([b"one", b"two"], cut=True))
    pieces = client.download("r1", "a b/c")
    with pytest.raises(errors.Unavailable, match="cut off"):
        list(pieces)


def test_values_that_json_cannot_hold_come_back_as_numbers(
    plane: FakePlane, client: Client
) -> None:
    series = {
        "name": "loss", "attempt": 1, "rank": 0, "steps": [0, 1, 2], "times": [0.0, 1.0, 2.0],
        "values": [1, "NaN", "-Infinity"],
    }  # fmt: skip
    plane.on(f"GET {ROOT}/runs/r1/metrics", json([series]))
    (found,) = client.metrics("r1", names=["loss"])
    assert repr(found.values) == "[1.0, nan, -inf]"


def test_blobs_travel_in_a_pack(plane: FakePlane, client: Client) -> None:
    plane.on(f"POST {ROOT}/blobs/missing", lambda seen: Answer(seen.body))
    plane.on(f"POST {ROOT}/blobs/pack", Answer(b"", 204))
    assert client.missing(["a" * 64]) == ("a" * 64,)
    client.push_pack(lambda: iter([b"1", b"2"]))
    assert msgspec.json.decode(plane.seen[0].body, type=Digests).digests == ("a" * 64,)
    assert plane.seen[1].body == b"12"


def test_shutting_down_and_pruning_are_never_sent_twice(plane: FakePlane, client: Client) -> None:
    client.wait("r1", 0)
    calls: dict[str, Callable[[], object]] = {"shutdown": client.shutdown, "prune": client.prune}
    for path, call in calls.items():
        plane.on(f"POST {ROOT}/{path}", Answer(b"half", cut=True))
        with pytest.raises(errors.Unavailable):
            call()
        assert plane.counts()[f"POST {ROOT}/{path}"] == 1


def test_every_path_of_the_contract_has_a_method(plane: FakePlane, client: Client) -> None:
    """Each row of ``core.api``'s table is called by exactly this client, with its method."""
    import re

    from wherry.core import api

    table = re.findall(r"^(GET|POST|DELETE) +(/\S+)", api.__doc__ or "", re.MULTILINE)
    calls: list[Callable[[], object]] = [
        client.status, client.shutdown, client.job_schema, client.prune,
        lambda: client.backup("/b"), lambda: client.missing([]),
        lambda: client.push_pack(lambda: [b""]), lambda: client.blob("0"),
        lambda: client.submit(Submit(spec=SPEC)), lambda: client.plan(Submit(spec=SPEC)),
        client.runs, lambda: client.run("r1"), lambda: client.wait("r1", 0),
        lambda: list(client.raw_logs("r1")), lambda: client.metrics("r1"),
        lambda: client.usage("r1"), lambda: client.files("r1"),
        lambda: list(client.download("r1", "p")), lambda: client.result("r1"),
        lambda: client.stop("r1"), lambda: client.retry("r1"), lambda: client.delete("r1"),
        lambda: client.stack("r1"), lambda: client.put_tasks("r1", "e", b""),
        lambda: client.collect_tasks("r1", "e", 0), lambda: client.end_tasks("r1"),
        lambda: beside.dial(client, "r1", rank=0),
    ]  # fmt: skip

    def refuse(seen: Seen) -> Answer:
        return json(errors.NotFound("no").envelope(), 404)

    fill = {"{digest}": "0", "{ref}": "r1", "{path}": "p"}
    expected = set()
    for method, path in table:
        if "{id}" in path:  # named by the answer of another call
            continue
        for hole, value in fill.items():
            path = path.replace(hole, value)
        expected.add(f"{method} {ROOT}{path}")
        plane.on(f"{method} {ROOT}{path}", refuse)
    for call in calls:
        with pytest.raises(errors.NotFound):
            call()
    assert set(plane.counts()) == expected
