"""
Named control planes on other machines: ``contexts.toml`` in Wherry's home, mode 0600.

Called by ``sdk.connect`` and the command line. ``local`` is built in: the embedded control plane of
this machine. A person's own comments in the file are kept.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry import settings
from wherry.errors import Conflict, InvalidInput, NotFound, did_you_mean
from wherry.sdk.http import Endpoint

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

    from wherry.sdk.client import Client

LOCAL = "local"


@dataclass(frozen=True)
class Context:
    """One control plane. ``endpoint`` is None for the one of this machine."""

    name: str
    endpoint: Endpoint | None = None
    current: bool = False


def contexts(home: Path | None = None) -> list[Context]:
    """All, ``local`` first, then by name."""
    data = _read(home)
    current = _current(data)
    found = [Context(LOCAL, None, current == LOCAL)]
    for name, row in sorted(data.get("contexts", {}).items()):
        found.append(Context(name, _endpoint(name, row), current == name))
    return found


def context(name: str | None = "", home: Path | None = None) -> Context:
    """
    The context called ``name``; for "" the one in use: ``WHERRY_CONTEXT``, else as ``use`` said.

    :raises NotFound: where there is none of that name.
    """
    name = name or str(settings.get("context"))
    if name == LOCAL:
        return Context(LOCAL, None, True)
    if not name and not _path(home).exists():
        return Context(LOCAL, None, True)
    known = contexts(home)
    for found in known:
        if found.name == name or (not name and found.current):
            return found
    raise NotFound(
        f"there is no context {name!r}", hint=did_you_mean(name, [c.name for c in known])
    )


def chosen(name: str = "") -> str:
    """Why :func:`context` answers as it does, for people."""
    found = context(name)
    place = "this machine" if found.endpoint is None else f"context {found.name!r}"
    if name:
        return f"on {place}, as --on said"
    if variable := str(settings.get("context")):
        return f"on {place}, as WHERRY_CONTEXT={variable} says"
    if found.endpoint is None:
        return f"on {place}: no --on was given, and no other context is in use"
    return f"on {place}: no --on was given, and it is the context in use"


def add(name: str, url: str, token: str, home: Path | None = None) -> Context:
    """
    Write down a control plane. Again with the same values: nothing changes.

    :raises Conflict: where the name means another one already. :raises InvalidInput:
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) or name == LOCAL:
        raise InvalidInput(
            f"{name!r} cannot name a context", hint="letters, digits, '.', '-', '_'; not 'local'"
        )
    if not re.match(r"https?://[^/\s]+", url):
        raise InvalidInput(f"{url!r} is not a URL", hint="write http://host:port or https://host")
    endpoint = Endpoint(url.rstrip("/"), token)
    document = _document(home)
    table = document.setdefault("contexts", {})
    if name in table and _endpoint(name, table[name]) != endpoint:
        raise Conflict(
            f"the context {name!r} is {table[name].get('url')!r}",
            hint=f"remove it first: wherry context rm {name}",
        )
    table[name] = {"url": endpoint.url, "token": token}
    _write(document, home)
    return Context(name, endpoint)


def use(name: str, home: Path | None = None) -> Context:
    """Make it the one that is meant where none is named. :raises NotFound:"""
    found = context(name, home)
    document = _document(home)
    document["current"] = name
    _write(document, home)
    return found


def remove(name: str, home: Path | None = None) -> None:
    """Forget it. :raises NotFound: :raises InvalidInput: for ``local``."""
    if name == LOCAL:
        raise InvalidInput("the context 'local' is built in")
    context(name, home)
    document = _document(home)
    del document["contexts"][name]
    if document.get("current") == name:
        del document["current"]
    _write(document, home)


def check(name: str = "", home: Path | None = None) -> Client:
    """
    A client of it that was answered with its credential.

    :raises NotFound: :raises Unavailable: :raises Unauthorized:
    """
    from wherry.sdk.connect import connect

    client = connect(context(name, home).name, start=False)
    client.status()
    return client


def _path(home: Path | None) -> Path:
    return (home or settings.home()) / "contexts.toml"


def _read(home: Path | None) -> dict[str, Any]:
    path = _path(home)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", hint="mend it, or remove it") from None
    if not isinstance(data.get("contexts", {}), dict):
        raise InvalidInput(f"{path}: 'contexts' is not a table", hint="write [contexts.NAME]")
    return data


def _current(data: dict[str, Any]) -> str:
    return str(settings.get("context") or data.get("current") or LOCAL)


def _endpoint(name: str, row: Any) -> Endpoint:
    if not isinstance(row, dict) or not isinstance(row.get("url"), str):
        raise InvalidInput(f"contexts.toml: the context {name!r} has no url")
    return Endpoint(str(row["url"]), str(row.get("token", "")))


def _document(home: Path | None) -> TOMLDocument:
    import tomlkit

    _read(home)  # says in words what is wrong with it
    path = _path(home)
    return tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()


def _write(document: TOMLDocument, home: Path | None) -> None:
    import tomlkit

    path = _path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    with open(temporary, "w", encoding="utf-8", opener=_private) as file:
        file.write(tomlkit.dumps(document))
    temporary.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
