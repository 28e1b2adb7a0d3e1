"""Every door is locked: the walk is over the application, so a new route cannot be forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Plane
from wherry.server.auth import OPEN

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def paths(plane: Plane) -> Iterator[str]:
    for route in plane.control.routes.routes:
        yield route.path_format.replace("{", "").replace("}", "")
    yield from ("/", "/favicon.ico", "/static/x", "/api/v1", "/metrics", "//healthz", "/healthz/x")


def test_every_route_and_method_needs_a_credential(plane: Plane) -> None:
    walked = set()
    for path in paths(plane):
        for method in METHODS:
            response = plane.stranger.request(method, path, headers={"authorization": ""})
            if path in OPEN:
                assert response.status_code in (200, 204, 405)
            else:
                walked.add(path)
                assert response.status_code == 401, (method, path)
                if method != "HEAD":
                    assert response.json()["error"]["code"] == "unauthorized"
    assert len(walked) > 20


def test_a_websocket_without_a_credential_is_refused_before_it_opens(plane: Plane) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in ("/api/v1/anything", "/agent/v1/reports", "/"):
        assert plane.stranger.get(path, headers=upgrade).status_code in (401, 403)


@pytest.mark.parametrize("token", ["wrong", "Bearer", "wu_", "\u00fc".encode().decode("latin-1")])
def test_a_wrong_token_is_refused(plane: Plane, token: str) -> None:
    header = [(b"authorization", f"Bearer {token}".encode("latin-1"))]
    response = plane.stranger.get("/api/v1/runs", headers=header)
    assert response.status_code == 401


def test_a_ranks_token_opens_only_the_agents_routes_and_the_owners_only_the_others(
    plane: Plane,
) -> None:
    agent = plane.agent(plane.submit())
    assert agent.http.get("/api/v1/runs").status_code == 401
    assert plane.http.post("/agent/v1/reports", content=b"").status_code == 401


def test_a_foreign_host_header_is_refused_with_every_method(plane: Plane) -> None:
    for host in ("evil.test", "127.0.0.1:1", "127.0.0.1.evil.test:7777", "", "localhost"):
        for method in METHODS:
            response = plane.http.request(method, "/api/v1/runs", headers={"host": host})
            assert response.status_code == 400, (host, method)


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "http://127.0.0.1:1", "http://localhost.evil.test:7777"]
)
def test_a_page_of_another_site_is_refused(plane: Plane, origin: str) -> None:
    response = plane.http.post("/api/v1/runs", json={}, headers={"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/v1/runs", b"{", 400),
        ("POST", "/api/v1/runs", b'{"spec": {"command": "x", "workers": "many"}}', 400),
        ("POST", "/api/v1/runs", b'{"spec": {"command": []}}', 400),
        ("GET", "/api/v1/runs?limit=0", b"", 400),
        ("GET", "/api/v1/runs?state=bored", b"", 400),
        ("GET", "/api/v1/nowhere", b"", 404),
        ("PATCH", "/api/v1/runs", b"", 405),
        ("GET", "/api/v1/blobs/../../token", b"", 404),
        ("GET", "/api/v1/blobs/zz", b"", 400),
        ("POST", "/api/v1/runs", b"[" * 100_000, 400),
    ],
)
def test_every_refusal_has_the_one_envelope(
    plane: Plane, method: str, path: str, body: bytes, status: int
) -> None:
    response = plane.http.request(method, path, content=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"code", "message", "hint"}


def test_a_defect_tells_a_number_and_no_secret(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr(type(plane.control.services.store), "runs", fails)
    with caplog.at_level(logging.DEBUG, logger="wherry"):
        response = plane.http.get("/api/v1/runs")
    assert response.status_code == 500 and "internal detail" not in response.text
    assert "internal detail" in caplog.text
    assert plane.control.keys.token not in caplog.text + response.text


def test_every_route_is_described(plane: Plane) -> None:
    document = plane.http.get("/api/v1/openapi/openapi.json").json()
    described = 0
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            assert operation.get("description"), (verb, path)
            described += 1
    assert described > 20


def test_keys_are_readable_by_their_owner_alone(plane: Plane) -> None:
    for name in ("token", "secret"):
        assert (plane.home / name).stat().st_mode & 0o077 == 0
