"""
Job files, and everything else that people write about a job: strict, with words.

Called by ``sdk.submit``, for files as well as for options of the command line and of
``wherry.run``: they are data of the same shape. Unlike decoding between programs, an unknown key is
an error that suggests the right one, at any depth.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from wherry.core.job import JobSpec, MetricRule, Resources, parse_bytes, parse_seconds
from wherry.errors import InvalidSpec, UnknownKey, did_you_mean

Format = Literal["yaml", "toml", "json"]

FORMATS: dict[str, Format] = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
MAX_TEXT = 1 << 20  # characters of a job file
_MAX_NODES = 100_000  # with every alias written out


def load(text: str, *, format: Format, source: str = "job file") -> dict[str, Any]:
    """
    The data of a job file, checked key by key; give it to :func:`spec` to have a JobSpec.

    :param source: what to call the file in errors.
    :raises InvalidSpec: with line and column where the text is not of its format, or the path of
        the key, its value and what was expected. :raises UnknownKey: with the nearest known one.
    """
    if len(text) > MAX_TEXT:
        raise InvalidSpec(f"{source}: a job file has at most {MAX_TEXT:,} characters")
    try:
        data = _PARSERS[format](text, source)
    except RecursionError:
        raise InvalidSpec(f"{source}: it is nested too deeply") from None
    except InvalidSpec as error:
        hint = error.hint or "look there and above: an open bracket, an open quote, a tab"
        raise InvalidSpec(error.message, hint=hint) from None
    if not isinstance(data, dict):
        raise InvalidSpec(
            f"{source}: expected keys and values, found {_shown(data)}",
            hint="a job file begins, for example, with:  command: python train.py",
        )
    try:
        return check(data)
    except InvalidSpec as error:
        raise type(error)(f"{source}: {error.message}", hint=error.hint) from None


def spec(data: Mapping[str, Any]) -> JobSpec:
    """
    A JobSpec from data in a job file's form. Raises as :func:`load`, and where parts do not fit.

    Besides a JobSpec's own form it may have: ``command`` as one string, ``resources.memory`` as
    "4Gi", durations as "2h", numbers in ``env``, ``retry_on`` and ``fail_on``, a metric as only its
    pattern, a role as only its count, and ``workers: {min: 2, max: 8}`` of an elastic group.
    """
    made: JobSpec = _convert(check(data), JobSpec, "")
    return made.check()


def check(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a JobSpec's own form, each value checked. Raises as :func:`load`."""
    result = {key: _humane(key, value) for key, value in _sizes(data).items()}
    _convert(result, JobSpec, "")
    return result


def dump(job: JobSpec) -> dict[str, Any]:
    """Plain data that :func:`spec` makes the same JobSpec of; defaults are left out."""
    data = msgspec.to_builtins(job)
    assert isinstance(data, dict)
    return data


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; tables (resources, env, params, ...) are merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        ours = merged.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        merged[key] = {**ours, **value} if both else value  # type: ignore[dict-item]
    return merged


# --- what people write, as a JobSpec has it


def _humane(key: str, value: Any) -> Any:
    if key == "command" and isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise InvalidSpec(f"command: {value!r}: {error}".lower()) from None
    if key in _DURATIONS and _is(value, str):
        return _at(key, parse_seconds, value)
    if key == "resources" and isinstance(value, Mapping) and _is(value.get("memory"), str, float):
        return {**value, "memory": _at("resources.memory", parse_bytes, value["memory"])}
    if key == "env" and isinstance(value, Mapping):
        return {k: str(v) if _is(v, int, float) else v for k, v in value.items()}
    if key == "metrics" and isinstance(value, Mapping):
        return {k: {"pattern": v} if isinstance(v, str) else v for k, v in value.items()}
    if key == "roles" and isinstance(value, Mapping):
        return {name: _role(role) for name, role in value.items()}
    if key in ("retry_on", "fail_on", "ends_with"):
        listed = value if isinstance(value, list | tuple) else [value]
        return [str(one) if _is(one, int) else one for one in listed]
    return value


_DURATIONS = frozenset({"timeout", "grace", "backoff", "hold", "stall", "lease"})


def _role(value: Any) -> Any:
    if _is(value, int):
        return {"count": value}
    if isinstance(value, Mapping):
        return {key: _humane(key, inner) for key, inner in value.items()}
    return value


def _sizes(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """``workers`` from ... to ... as two keys; whoever says so wants an elastic group."""
    size = data.get("workers")
    if not isinstance(size, Mapping):
        return data
    for key in size:
        if key not in ("min", "max"):
            raise UnknownKey(f"there is no key {_join('workers', key)!r}", hint="min and max")
    if "max" not in size:
        raise InvalidSpec("workers: the key 'max' is missing", hint="workers: {min: 2, max: 8}")
    return {
        **data,
        "workers": size["max"],
        "min_workers": size.get("min", 1),
        "group": data.get("group", "elastic"),
    }


def _is(value: Any, *kinds: type) -> bool:
    """Whether it is of these kinds; true and false are no numbers."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def _at(path: str, parse: Any, value: Any) -> Any:
    try:
        return parse(value)
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}: {error.message}", hint=error.hint) from None


# --- checking, with the path to what is wrong


def _convert(value: Any, kind: Any, path: str) -> Any:
    """``value`` as ``kind``. Structs and mappings are taken apart, so that errors have a path."""
    if isinstance(kind, types.UnionType) and value is not None:
        structs = [k for k in typing.get_args(kind) if _is_struct(k)]
        kind = structs[0] if structs else kind
    if _is_struct(kind):
        return _struct(_mapping(value, path), kind, path)
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return {k: _convert(v, inner, _join(path, k)) for k, v in _mapping(value, path).items()}
    _finite(value, path)
    if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        choices = " or ".join(map(_shown, typing.get_args(kind)))
        raise InvalidSpec(f"{path}: expected {choices}, found {_shown(value)}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wrong(value, str(error), path) from None


def _struct(data: Mapping[Any, Any], kind: type[Struct], path: str) -> Any:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in data:
        if key not in fields:
            raise UnknownKey(
                f"there is no key {_join(path, key)!r}", hint=_suggest(str(key), kind, fields)
            )
    made = {fields[k].name: _convert(v, fields[k].type, _join(path, k)) for k, v in data.items()}
    for name, field in fields.items():
        if field.required and name not in data:
            raise InvalidSpec(f"{path}: the key {name!r} is missing")
    return kind(**made)


def _suggest(key: str, kind: type[Struct], fields: Mapping[str, Any]) -> str:
    if kind is JobSpec and key in {f.name for f in msgspec.structs.fields(Resources)}:
        return f"write it below resources:  resources: {{{key}: ...}}"
    if kind is MetricRule and key == "source":
        return "did you mean 'from'?"
    return did_you_mean(key, fields)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidSpec(f"{path or 'the job'}: expected keys and values, found {_shown(value)}")
    for key in value:
        if not isinstance(key, str):
            raise InvalidSpec(
                f"{_join(path, key)}: a key has to be text", hint=f"put {key!r} in quotes"
            )
    return value


def _finite(value: Any, path: str) -> None:
    """JSON, which everything travels as, has no NaN, no infinity and no integer over 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpec(f"{path}: {value} is not a finite number", hint="write it as text")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidSpec(f"{path}: {value} does not fit into 64 bits", hint="write it as text")


#: msgspec's names of types, for people.
_NAMES = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "array": "a list", "object": "keys and values", "null": "nothing",
}  # fmt: skip


def _named(match: re.Match[str]) -> str:
    return " or ".join(_NAMES.get(name.strip(), name.strip()) for name in match[1].split("|"))


def _wrong(value: Any, message: str, path: str) -> InvalidSpec:
    """``Expected `int`, got `str` - at `$[0]``` in words, with the value."""
    what, _, inside = message.partition(" - at `$")
    what = re.sub(r", got `.*", "", what)
    what = what.removeprefix("Expected ").removeprefix("Invalid ")
    what = re.sub(r"`([^`]*)`", _named, what)
    quote = what == "text" and isinstance(value, bool | int | float)
    return InvalidSpec(
        f"{path}{inside.rstrip('`')}: expected {what}, found {_shown(value)}",
        hint="put it in quotes" if quote else _example(path),
    )


#: A right value of keys that are often written wrong.
_EXAMPLES = {"workers": 2, "processes": 2, "restarts": 2, "priority": 10, "cpu": 0.5, "gpu": 1}


def _example(path: str) -> str:
    key = path.rpartition(".")[2]
    if key in _EXAMPLES:
        return f"for example  {key}: {_EXAMPLES[key]}"
    return "what each key takes: docs/reference/job.md, wherry run --help"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the three formats, each refusing a key that stands twice


def _json(text: str, source: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise InvalidSpec(f"{source}: the key {key!r} stands twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise InvalidSpec(
            f"{source}: line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        ) from None
    except ValueError as error:  # a number of too many digits
        raise InvalidSpec(f"{source}: {error}") from None


def _toml(text: str, source: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSpec(f"{source}: {str(error).lower()}") from None
    except ValueError as error:
        raise InvalidSpec(f"{source}: {error}") from None


def _yaml(text: str, source: str) -> Any:
    import yaml

    loader = None
    try:
        loader = _yaml_loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _bound(node, {}, source)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidSpec(f"{source}: {where}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSpec(f"{source}: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and with the numbers of YAML 1.2: ``1e-3`` is one."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    return Loader


def _bound(node: Any, sizes: dict[int, int | None], source: str) -> int:
    """How many nodes there are with all aliases written out; too many are refused, keys too."""
    import yaml

    known = sizes.get(id(node), 0)
    if known:
        return known
    where = f"{source}: line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
    if known is None:
        raise InvalidSpec(f"{where}: it contains itself")
    sizes[id(node)] = None
    total = 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise InvalidSpec(f"{source}: line {line}: the key {key.value!r} stands twice")
                seen.add((key.tag, key.value))
            total += _bound(key, sizes, source) + _bound(value, sizes, source)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_bound(item, sizes, source) for item in node.value)
    if total > _MAX_NODES:
        raise InvalidSpec(f"{where}: its aliases stand for too much")
    sizes[id(node)] = total
    return total


_PARSERS = {"json": _json, "toml": _toml, "yaml": _yaml}
