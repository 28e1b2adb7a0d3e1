"""
The guard before every route: who calls, from which page, to which host.

Wraps the whole application in ``server.app``, so that a route, a mount or a websocket that is added
later is guarded without a word. Only :data:`OPEN` answers strangers.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from wherry.control.tokens import RankIdentity, Tokens
from wherry.core.api import encode
from wherry.errors import BadHost, Forbidden, Unauthorized, WherryError

OPEN = frozenset({"/healthz", "/readyz"})
AGENT = "/agent/"


class User(Struct, frozen=True):
    """A person, or a program with a person's token."""

    name: str


Identity = User | RankIdentity


class Guard:
    """Lets a request in with its identity in ``scope["state"]["identity"]``, or answers itself."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        owner: str,
        tokens: Tokens,
        hosts: Callable[[], frozenset[str]],
    ) -> None:
        self._app, self._token, self._owner = app, token.encode(), owner
        self._tokens, self._hosts = tokens, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] in (ScopeType.HTTP, ScopeType.WEBSOCKET):
            try:
                self._admit(scope)
            except WherryError as error:
                await _refuse(error, scope, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        hosts = self._hosts()
        host = headers.get(b"host", b"").decode("latin-1")
        if host.lower() not in hosts:
            # A page elsewhere may resolve its own name to 127.0.0.1 (DNS rebinding).
            raise BadHost(f"this server does not answer for the host {host[:100]!r}")
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() not in hosts:
            raise Forbidden("pages of other sites may not call this server")
        if scope["path"] in OPEN:
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            raise Unauthorized("this needs a token", hint="send Authorization: Bearer <token>")
        state = scope.setdefault("state", {})
        state["identity"] = self._identify(scope["path"], token)

    def _identify(self, path: str, token: bytes) -> Identity:
        if path.startswith(AGENT):
            return self._tokens.read(token.decode("latin-1"))
        if not hmac.compare_digest(token, self._token):
            raise Unauthorized("the token is wrong", hint="wherry context check says which is used")
        return User(self._owner)


async def _refuse(error: WherryError, scope: Scope, send: Send) -> None:
    if scope["type"] is ScopeType.WEBSOCKET:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        return
    headers: Iterable[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": encode(error.envelope()), "more_body": False})
