"""
Write the pages that have a table or a schema as their source: ``make docs``.

``tests/docs/test_reference.py`` fails where a page is not what this writes.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from wherry.cli import reference
from wherry.core import contract, job, schema, states
from wherry.server.app import embedded

DOCS = Path(__file__).parent
HEAD = "<!-- written by `make docs`; do not edit -->\n\n"

Schema = Mapping[str, Any]


# --- docs/concepts/states.md


def states_page() -> str:
    """The two tables of ``core.states``, drawn and in words."""
    runs, ranks = states.RUN_NEXT, states.RANK_NEXT
    return f"""# States

A run moves along the first table, each of its ranks along the second. The store guards every move
(`UPDATE … WHERE state IN …`), so of two that want to move a run, one does. A state without a way
out is final.

## A run

{_drawing(runs)}

{_meanings("RunState")}

From `running` back to `queued`: a new attempt is made, because a machine failed and `restarts` are
left. Polling can miss `running`, so a short run may go from `starting` straight to its end.

## A rank

{_drawing(ranks)}

{_meanings("RankState")}
"""


def _drawing(table: Mapping[Any, frozenset[Any]]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(table)).value}"]
    for source, targets in table.items():
        lines += [f"    {source.value} --> {target.value}" for target in table if target in targets]
        if not targets:
            lines.append(f"    {source.value} --> [*]")
    return "\n".join([*lines, "```"])


def _meanings(name: str) -> str:
    """The states of an enumeration with the comments beside them in the source."""
    source = Path(states.__file__).read_text("utf-8").partition(f"class {name}(")[2]
    body = source.partition("\n\n\n")[0]
    rows = re.findall(r'^    [A-Z]+ = "(\w+)"(?:  # (.*))?$', body, re.MULTILINE)
    return "\n".join(
        ["| state | meaning |", "| --- | --- |", *(f"| `{s}` | {m} |" for s, m in rows)]
    )


# --- docs/reference/job.md


JOB_INTRO = """# A job file

`wherry run job.yaml`. The same keys in YAML, TOML and JSON, as options of `wherry run`, and as
keywords of `wherry.run()`. An unknown key is an error that names the right one.

```yaml
name: digits
command: python train.py --epochs 3
workers: 2
resources: {cpu: 1, memory: 2Gi}
metrics: {accuracy: "accuracy=([0-9.]+)"}
restarts: 2
timeout: 2h
```

`command` may be one line or a list of words; `memory` bytes or `4Gi`; a time (`timeout`, `grace`,
`backoff`, `hold`, `stall`, `lease`) seconds or `1h30m`; a metric its pattern alone. The
[JSON schema](job.schema.json) of all this, for editors, is also at `/api/v1/schemas/job`. What
Wherry fills in by itself (`code`, `environment`, `call`,
`spec_version`) is described in the classes of `wherry.core.job`.
"""

#: What the fields are for; the schema has their names, types and defaults.
JOB_FIELDS = {
    "name": "what to call the run; by default the script's name",
    "command": "what to run; `python` as the first word is the environment's own",
    "group": "what happens when one rank dies: a `gang` stops whole, an `elastic` group goes on "
    "without it until it is replaced, in a `pool` it is replaced and nobody else notices",
    "workers": "how many at once; of an elastic group `{min: 2, max: 8}`",
    "min_workers": "of an elastic group: with fewer it does not go on",
    "processes": "processes of one worker; world size = workers × processes",
    "roles": "instead of workers: kinds of them, `{chief: 1, worker: 4, ps: 2}`: see below",
    "ends_with": "roles whose success ends the run; by default the `chief` alone, else all but "
    "`ps`, `server`, `scheduler` and `evaluator`",
    "resources": "what one rank needs: see below",
    "env": "environment variables",
    "params": "parameters to record, beside those read from the command line",
    "metrics": "how to read metrics from output: a regular expression, its first group the number; "
    "`sample`, a line that it must match, is tried before the run",
    "restarts": "new attempts (in a pool: of each rank) after faults of machines",
    "retry_on": "what else is tried again: exit statuses `75`, `64-78`, signals `SIGSEGV`, causes "
    "`oom`, `any`",
    "fail_on": "what is never tried again, in the same words",
    "backoff": "before the first retry; doubled with each",
    "timeout": "of one attempt",
    "grace": "between SIGTERM and SIGKILL when the run is stopped",
    "hold": "how long the folder of a rank that failed is kept, with its agent",
    "stall": "silence after which the run is marked as stalled; 0: never",
    "lease": "silence after which a rank is lost; by default the control plane's",
    "faults": "what a rehearsal injects: `wherry rehearse` writes them",
    "priority": "larger goes first",
    "tags": "to find it by",
    "note": "free text",
}
ROLE = {
    "count": "how many ranks",
    "command": "what they run; by default the job's",
    "resources": "of one rank; by default the job's",
    "env": "over the job's",
}
RESOURCES = {
    "cpu": "cores, fractions allowed",
    "memory": "bytes, or `512Mi`, `4Gi`",
    "gpu": "whole devices",
}


def job_page() -> str:
    """The fields of a job file."""
    kinds = job.json_schema()["$defs"]
    spec, resources = kinds["JobSpec"]["properties"], kinds["Resources"]["properties"]
    role = kinds["Role"]["properties"]
    assert JOB_FIELDS.keys() == spec.keys() - schema.FILLED_IN, "docs/generate.py: JOB_FIELDS"
    assert ROLE.keys() == role.keys(), "docs/generate.py: ROLE"
    assert RESOURCES.keys() == resources.keys(), "docs/generate.py: RESOURCES"
    return "\n".join(
        [
            JOB_INTRO,
            *_fields(spec, JOB_FIELDS),
            "",
            "## resources",
            "",
            *_fields(resources, RESOURCES),
            "",
            "## roles",
            "",
            "The key is its name, the value its count or these. Ranks are numbered in this order.",
            "",
            *_fields(role, ROLE),
        ]
    )


def _fields(known: Schema, words: Mapping[str, str]) -> Iterator[str]:
    yield "| key | type | default | what it is |"
    yield "| --- | --- | --- | --- |"
    for name, text in words.items():
        default = known[name].get("default")
        shown = "" if default in (None, "", [], (), {}) else f"`{default}`"
        yield f"| `{name}` | {_type(known[name])} | {shown} | {text} |"


def _type(kind: Schema) -> str:
    """A schema's type for people: "number", "list", "one of ..."."""
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if "anyOf" in kind:
        return " or ".join(
            dict.fromkeys(_type(s) for s in kind["anyOf"] if s.get("type") != "null")
        )
    named = {"array": "list", "object": "table", "string": "text", "integer": "whole number"}
    name = str(kind.get("type", "object"))
    return named.get(name, name)


# --- docs/reference/http.md


HTTP_INTRO = """# HTTP

`wherry status` prints the address; the token is in `~/.wherry/server.json`, which only you can
read. Every call but `/healthz` and `/readyz` carries `Authorization: Bearer TOKEN`. A creating call
takes an `Idempotency-Key`: sent again with the same key, it makes nothing new. Every error has the
form `{"error": {"code", "message", "hint"}}`; the codes are in [errors](errors.md). The whole
description, bodies too, is at `/api/v1/openapi/openapi.json`.
"""


def http_page() -> str:
    """Every call of the control plane, from its own OpenAPI document."""
    with tempfile.TemporaryDirectory() as home:
        plane = embedded(Path(home), url="http://127.0.0.1:0")
        paths = plane.routes.openapi_schema.to_schema()["paths"]
        plane.services.store.close()
    parts = [HTTP_INTRO, "| call | query | what it does |", "| --- | --- | --- |"]
    agents = [
        "",
        "## What agents call",
        "",
        "| call | query | what it does |",
        "| --- | --- | --- |",
    ]
    for path, calls in sorted(paths.items()):
        for method, call in calls.items():
            query = [p["name"] for p in call.get("parameters", ()) if p["in"] == "query"]
            said = " ".join(str(call.get("description", "")).partition("\n\n")[0].split())
            said = said.replace("``", "`")
            row = f"| `{method.upper()} {path}` | {', '.join(f'`{q}`' for q in query)} | {said} |"
            (agents if path.startswith("/agent/") else parts).append(row)
    return "\n".join([*parts, *agents])


# --- docs/reference/worker-contract.md


CONTRACT_INTRO = """# What a rank finds in its environment

Every rank of a run gets these variables, on every machine, so that a framework finds its peers in
the way that it documents, and the same script runs alone and with others.
[Frameworks](../guides/frameworks.md) has an example for each. Your own variables (`env:` of a job)
are there, too, but do not replace these; thread counts that you set stay.

The ports were free on their machine when the ranks met, and were held until the program started.
"""


def contract_page() -> str:
    """The worker contract, by who reads it."""
    parts = [CONTRACT_INTRO]
    for (readers, where), rows in groupby(contract.CONTRACT, lambda v: (v.readers, v.where)):
        parts += ["", f"**{readers}** · set: {where}", ""]
        parts += ["| variable | meaning |", "| --- | --- |"]
        parts += [f"| `{row.name}` | {row.meaning} |" for row in rows]
    return "\n".join(parts)


PAGES = {
    "reference/worker-contract.md": contract_page,
    "concepts/states.md": states_page,
    "reference/job.md": job_page,
    "reference/http.md": http_page,
}


def write(folder: Path) -> None:
    """Write every page below ``folder``. Again: the same bytes."""
    reference.write(folder / "reference")
    for name, page in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + page().rstrip() + "\n", "utf-8")
    made = json.dumps(schema.job_file(), indent=2, ensure_ascii=False)
    (folder / "reference" / "job.schema.json").write_text(made + "\n", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else DOCS)
