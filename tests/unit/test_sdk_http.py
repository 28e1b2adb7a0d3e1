"""The wire and the client on it: framings, errors by class, patience, keep-alive."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.unit.fake_plane import Answer, FakePlane, RawServer, Seen, json, serving
from wherry import errors
from wherry.sdk.http import Endpoint, Http
from wherry.sdk.wire import Broken, Connection, Refused


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    with serving() as plane:
        yield plane


def read(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a prepared answer."""
    server = RawServer(answer)
    try:
        connection = Connection(server.url, timeout=5)
        response = connection.request("GET", "/", {}, timeout=5)
        body = b"".join(response.pieces())
        connection.close()
        return response.status, body
    finally:
        server.close()


def refused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (CHUNKED + b"3;name=value\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_every_framing_of_a_body_is_read_to_its_end(answer: bytes, body: bytes) -> None:
    assert read(answer)[1] == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
    ],
)
def test_an_answer_that_is_cut_off_or_no_http_is_broken_not_short(answer: bytes) -> None:
    with pytest.raises(Broken):
        read(answer)


def test_nobody_there_is_refused() -> None:
    with pytest.raises(Refused):
        Connection(refused_url(), timeout=5)


def test_the_connection_is_kept_between_calls(plane: FakePlane) -> None:
    plane.on("GET /x", json(1))
    http = plane.http()
    for _ in range(5):
        assert http.call("GET", "/x") == b"1"
    assert plane.connections == 1


def test_many_threads_share_one_client(plane: FakePlane) -> None:
    plane.on("GET /x", lambda seen: json(seen.query))
    http = plane.http()
    wrong: list[bytes] = []

    def ask(n: int) -> None:
        answers = {http.call("GET", "/x", query={"n": n}) for _ in range(20)}
        wrong.extend(answers - {f'"n={n}"'.encode()})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    http.close()


def test_a_forked_child_does_not_share_the_sockets_of_its_parent(plane: FakePlane) -> None:
    plane.on("GET /x", json(1))
    http = plane.http()
    http.call("GET", "/x")
    child = os.fork()
    if not child:
        os._exit(0 if http.call("GET", "/x") == b"1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert http.call("GET", "/x") == b"1"
    assert plane.connections == 2


def test_an_error_is_raised_again_as_its_class(plane: FakePlane) -> None:
    for code, cls in errors.BY_CODE.items():
        plane.on("GET /x", json(cls("why", hint="how").envelope(), cls.http_status))
        with pytest.raises(cls) as caught:
            plane.http().call("GET", "/x", again=False)
        assert type(caught.value).code == code
        assert (caught.value.message, caught.value.hint) == ("why", "how")


def test_an_error_without_an_envelope_is_told_as_it_came(plane: FakePlane) -> None:
    plane.on("GET /x", Answer(b"<h1>Bad Gateway</h1>", 502))
    with pytest.raises(errors.Internal, match=r"502.*Bad Gateway"):
        plane.http().call("GET", "/x")


def test_nobody_there_at_first_is_told_at_once_with_words() -> None:
    url = refused_url()
    with pytest.raises(errors.Unavailable, match=url) as caught:
        Http(Endpoint(url), patience=60).call("GET", "/x")
    assert "wherry up" in caught.value.hint


def test_a_call_survives_a_restart_on_another_port() -> None:
    with serving() as first:
        first.on("GET /x", json("first"))
        second: list[str] = []
        http = Http(
            Endpoint(first.url), renew=lambda: Endpoint(second[0]) if second else None, patience=20
        )
        assert http.call("GET", "/x") == b'"first"'
        http.close()
    with serving() as plane:
        plane.on("GET /x", json("second"))
        second.append(plane.url)
        assert http.call("GET", "/x") == b'"second"'


def test_patience_has_an_end() -> None:
    with serving() as plane:
        plane.on("GET /x", json(1))
        http = plane.http(patience=0.2)
        http.call("GET", "/x")
        http.close()
    with pytest.raises(errors.Unavailable):
        http.call("GET", "/x")


def test_a_broken_answer_is_asked_for_again_where_that_is_harmless(plane: FakePlane) -> None:
    plane.on("GET /x", json(0), Answer(b"half", cut=True), json(1))
    http = plane.http()
    http.call("GET", "/x")
    assert http.call("GET", "/x") == b"1"


def test_what_may_not_be_done_twice_is_not_sent_twice(plane: FakePlane) -> None:
    plane.on("GET /x", json(0))
    plane.on("POST /x", Answer(b"half", cut=True), json(1))
    http = plane.http()
    http.call("GET", "/x")
    with pytest.raises(errors.Unavailable, match="cut off"):
        http.call("POST", "/x", again=False)
    assert plane.counts()["POST /x"] == 1


def test_not_ready_is_waited_for_but_no_space_is_not(plane: FakePlane) -> None:
    plane.on("GET /x", json(errors.Unavailable("soon").envelope(), 503), json(1))
    assert plane.http().call("GET", "/x") == b"1"
    plane.on("GET /x", json(errors.StorageFull("full").envelope(), 503), json(1))
    with pytest.raises(errors.StorageFull):
        plane.http().call("GET", "/x")


def test_an_idempotency_key_stays_the_same_over_retries(plane: FakePlane) -> None:
    plane.on("POST /x", json(errors.Unavailable("soon").envelope(), 503), json(1))
    plane.http().call("POST", "/x", body=b"{}", key="k1")
    assert [seen.headers["idempotency-key"] for seen in plane.seen] == ["k1", "k1"]


def test_a_body_in_pieces_is_made_anew_for_every_try(plane: FakePlane) -> None:
    plane.on("POST /x", json(errors.Unavailable("soon").envelope(), 503), json(1))
    plane.http().call("POST", "/x", body=lambda: iter([b"one", b"", b"two" * 100_000]))
    assert [seen.body for seen in plane.seen] == [b"one" + b"two" * 100_000] * 2


def test_a_server_that_refuses_a_long_body_early_is_heard() -> None:
    envelope = b'{"error":{"code":"unauthorized","message":"no"}}'
    head = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(envelope)
    server = RawServer(head + envelope)
    try:
        with pytest.raises(errors.Unauthorized):
            Http(Endpoint(server.url)).call(
                "POST", "/x", body=lambda: (b"x" * 1000 for _ in range(100))
            )
    finally:
        server.close()


def test_the_token_is_sent_unless_told_otherwise_and_never_shown(plane: FakePlane) -> None:
    plane.on("GET /x", json(1))
    http = plane.http()
    http.call("GET", "/x")
    http.call("GET", "/x", token=False)
    assert [s.headers.get("authorization") for s in plane.seen] == ["Bearer secret", None]
    assert "secret" not in repr(http.endpoint)


def test_a_query_leaves_out_what_was_not_said_and_keeps_zero(plane: FakePlane) -> None:
    plane.on("GET /x", lambda seen: json(seen.query))
    query = {"a": None, "b": "", "c": 0, "d": [1, 2], "e": False, "f": True, "g": [], "h": "ä&="}
    assert plane.http().call("GET", "/x", query=query) == b'"c=0&d=1&d=2&f=true&h=%C3%A4%26%3D"'


def test_lines_arrive_as_they_are_sent(plane: FakePlane) -> None:
    go = threading.Event()

    def slow(seen: Seen) -> Answer:
        def pieces() -> Iterator[bytes]:
            yield b"one\ntw"
            assert go.wait(5)
            yield b"o\nthree"

        return Answer(pieces())

    plane.on("GET /x", slow)
    with plane.http().open("/x") as stream:
        lines = stream.lines()
        assert next(lines) == b"one"
        go.set()
        assert list(lines) == [b"two", b"three"]


def test_silence_longer_than_the_timeout_is_a_broken_connection(plane: FakePlane) -> None:
    go = threading.Event()

    def silent(seen: Seen) -> Answer:
        go.wait(5)
        return json(1)

    plane.on("GET /x", silent)
    started = time.monotonic()
    with pytest.raises(errors.Unavailable, match="timed out"):
        plane.http().call("GET", "/x", timeout=0.1)
    assert time.monotonic() - started < 4
    go.set()
