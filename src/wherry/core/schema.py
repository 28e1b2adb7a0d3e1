"""
The JSON schema of a job file: what people write, for editors and for other programs.

Published at ``/api/v1/schemas/job`` and, by ``docs/generate.py``, in ``docs/reference``. It is made
of JobSpec's own schema, so a new key is in it at once; ``core.files`` says what people may write
otherwise.
"""

from __future__ import annotations

from typing import Any

from wherry.core.job import json_schema

#: What Wherry fills in by itself.
FILLED_IN = frozenset({"spec_version", "call", "environment", "code"})
_DURATIONS = frozenset({"timeout", "grace", "backoff", "hold", "stall"})
_LISTS = frozenset({"retry_on", "fail_on", "ends_with"})

_TEXT = {"type": "string"}
_DURATION = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([smhd][0-9.smhd\s]*)?$"}
_MEMORY = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[kmgtKMGT]?[iI]?[bB]?\s*$"}


def job_file() -> dict[str, Any]:
    """The schema of what ``core.files.spec`` accepts and a person writes."""
    kinds: dict[str, Any] = json_schema()["$defs"]
    for kind in kinds.values():
        if kind.get("type") == "object":
            kind["additionalProperties"] = False
            kind["properties"] = {
                name: _humane(name, value) for name, value in kind["properties"].items()
            }
    job = kinds.pop("JobSpec")
    job["properties"] = {k: v for k, v in job["properties"].items() if k not in FILLED_IN}
    known = _references(job)
    while more := set[str]().union(*(_references(kinds[name]) for name in known)) - known:
        known |= more
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job file of Wherry",
        **{key: job[key] for key in ("type", "properties", "additionalProperties")},
        "anyOf": [{"required": ["command"]}, {"required": ["roles"]}],
        "$defs": {name: kind for name, kind in kinds.items() if name in known},
    }


def _humane(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of one key, with what people may write for it besides."""
    if name == "command":
        words = {"type": "array", "items": _TEXT, "minItems": 1}
        return {"anyOf": [{"type": "string", "minLength": 1}, words]}
    if name in _DURATIONS:
        return _or(schema, _DURATION)
    if name == "memory":
        return _or(schema, _MEMORY, {"type": "number", "exclusiveMinimum": 0})
    if name == "env":
        return {**schema, "additionalProperties": {"type": ["string", "number"]}}
    if name == "metrics":
        return {**schema, "additionalProperties": _or(schema["additionalProperties"], _TEXT)}
    if name == "workers":
        sizes = {"min": {"type": "integer", "minimum": 1}, "max": {"type": "integer", "minimum": 1}}
        span = {"type": "object", "properties": sizes, "required": ["max"]}
        return _or(schema, {**span, "additionalProperties": False})
    if name == "roles":
        count = {"type": "integer", "minimum": 1}
        return {**schema, "additionalProperties": _or(schema["additionalProperties"], count)}
    if name in _LISTS:
        one = {"type": ["string", "integer"]}
        return _or({**schema, "items": one}, one)
    if name == "name":
        return {**schema, "maxLength": 100, "pattern": r"^[^/\\]*$"}
    return schema


def _or(schema: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    known = schema.get("anyOf") or [{k: v for k, v in schema.items() if k != "default"}]
    made: dict[str, Any] = {"anyOf": [*known, *others]}
    return made | ({"default": schema["default"]} if "default" in schema else {})


def _references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"].rpartition("/")[2]} if "$ref" in schema else set[str]()
        return own.union(*map(_references, schema.values()))
    if isinstance(schema, list):
        return set[str]().union(*map(_references, schema))
    return set()
