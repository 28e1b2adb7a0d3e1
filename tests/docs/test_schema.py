"""The published schema accepts what the documentation shows and what `core.files` accepts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, blocks
from wherry.core import files
from wherry.errors import InvalidSpec

SCHEMA = json.loads((ROOT / "docs/reference/job.schema.json").read_text("utf-8"))
VALID = jsonschema_rs.validator_for(SCHEMA)
PARSERS: dict[str, Callable[[str], Any]] = {
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
    "json": json.loads,
}


def documented() -> Iterator[Any]:
    """Every job file that a page shows or that is an example."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind in PARSERS:
                data = PARSERS[block.kind](block.body)
                if isinstance(data, dict) and "command" in data:
                    yield pytest.param(data, id=f"{page.name}:{block.line}")
    for path in sorted(Path(ROOT / "examples").rglob("*")):
        if parse := PARSERS.get(path.suffix[1:].replace("yml", "yaml")):
            data = parse(path.read_text("utf-8"))
            if isinstance(data, dict) and "command" in data:
                yield pytest.param(data, id=path.name)


@pytest.mark.parametrize("job", list(documented()))
def test_every_job_file_in_the_documentation_fits_the_published_schema(job: Any) -> None:
    VALID.validate(job)
    files.spec(job)


@pytest.mark.parametrize(
    "job",
    [
        {"command": ["python", "x.py"], "resources": {"memory": 4096, "cpu": 0.5, "gpu": 1}},
        {"command": "python x.py", "resources": {"memory": "1.5 GiB"}},
        {"command": "x", "timeout": 90, "grace": "1m30s"},
        {"command": "x", "env": {"A": "1", "B": 2, "C": 0.5}, "params": {"lr": 0.1, "on": True}},
        {"command": "x", "metrics": {"a": "a=(.)", "b": {"pattern": "b=(.)", "from": "stderr"}}},
    ],
)
def test_what_people_may_write_is_accepted_by_both(job: Any) -> None:
    VALID.validate(job)
    files.spec(job)


@pytest.mark.parametrize(
    "job",
    [
        {"name": "no command"},
        {"command": "x", "worker": 2},
        {"command": "x", "workers": "two"},
        {"command": "x", "resources": {"memory": "much"}},
        {"command": "x", "resources": {"memory": "4Gi", "disk": 1}},
        {"command": "x", "timeout": "soon"},
        {"command": "x", "metrics": {"a": {"pattern": "a=(.)", "source": "stderr"}}},
        {"command": "x", "name": "a/b"},
    ],
)
def test_what_is_wrong_is_refused_by_both(job: Any) -> None:
    assert not VALID.is_valid(job)
    with pytest.raises(InvalidSpec):
        files.spec(job)
