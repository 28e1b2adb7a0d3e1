"""Whatever is sent to the documented API, about runs that are there too, is answered by words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import Plane
from wherry.core.run import Run
from wherry.errors import BY_CODE

pytestmark = pytest.mark.slow

#: They end the control plane, write where they are told, or are for agents.
LEFT_OUT = ("/api/v1/shutdown", "/api/v1/backup", "/agent/")


def operations(plane: Plane) -> Iterator[Any]:
    """Every documented call."""
    document = plane.http.get("/api/v1/openapi/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # an invalid one raises
        if not operation.path.startswith(LEFT_OUT):
            yield operation


@pytest.fixture
def there(plane: Plane) -> list[Run]:
    """A finished run, one that goes on, and one that waits."""
    done = plane.submit("python", "done.py", name="done", tags=("t",))
    agent = plane.agent(done)
    agent.start()
    agent.exit()
    plane.until(done.id, "succeeded")
    active = plane.submit("python", "active.py", name="active")
    plane.agent(active).start()
    plane.until(active.id, "running")
    return [done, active, plane.submit("python", "waiting.py", priority=-9)]


def send(plane: Plane, case: Any) -> httpx.Response:
    """The answer to a made-up call; what would wait or follow does not."""
    query = {**(case.query or {})}
    if "timeout" in query or case.path.endswith("/wait"):
        query["timeout"] = 0
    if "follow" in query:
        query["follow"] = "false"
    body = case.body if isinstance(case.body, dict | list) else None
    return plane.http.request(
        case.method,
        case.formatted_path,
        params=query,
        content=json.dumps(body).encode() if body is not None else None,
        headers={"content-type": "application/json"},
    )


def test_no_call_is_a_defect_whatever_it_says(plane: Plane, there: list[Run]) -> None:
    refs = st.sampled_from([ref for run in there for ref in (run.id, run.name)] + ["last"])
    tried: dict[str, set[int]] = {}

    for operation in operations(plane):

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), ref=refs, real=st.booleans())
        def try_it(case: Any, ref: str, real: bool) -> None:
            if real and "ref" in (case.path_parameters or {}):
                case.path_parameters["ref"] = ref
            answer = send(plane, case)
            tried.setdefault(f"{case.method} {case.path}", set()).add(answer.status_code)
            assert answer.status_code < 500, (case.method, case.formatted_path, answer.text)
            if answer.status_code >= 400:
                assert answer.json()["error"]["code"] in BY_CODE, answer.text

        try_it()
    assert {200} <= tried["GET /api/v1/runs/{ref}"]
    assert plane.stranger.get("/readyz").status_code == 200
