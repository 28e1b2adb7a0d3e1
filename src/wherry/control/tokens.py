"""
Rank tokens: who may report for which incarnation of which rank.

Called by ``control.reconcile`` (mints) and ``server.auth`` (reads). A token is an HMAC over the
identity that it names, so a launch that is repeated after a crash gives the same token, and nothing
secret has to be stored. Whether the incarnation is still the current one is the store's business.
"""

from __future__ import annotations

import hashlib
import hmac

from msgspec import Struct

from wherry.core.run import AttemptId
from wherry.errors import Unauthorized

PREFIX = "wr"


class RankIdentity(Struct, frozen=True):
    """Whom a rank token names."""

    attempt: AttemptId
    rank: int
    incarnation: int


class Tokens:
    """Mints and reads tokens with one secret key (at least 32 bytes)."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("the secret key is too short")
        self._secret = secret

    def mint(self, who: RankIdentity) -> str:
        """The token of this incarnation; always the same."""
        text = f"{who.attempt}.{who.rank}.{who.incarnation}"
        return f"{PREFIX}.{text}.{self._sign(text)}"

    def read(self, token: str) -> RankIdentity:
        """Whom the token names. :raises Unauthorized: where it is not ours."""
        prefix, _, rest = token.partition(".")
        text, _, signature = rest.rpartition(".")
        genuine = hmac.compare_digest(signature.encode(), self._sign(text).encode())
        if prefix != PREFIX or not genuine:
            raise Unauthorized("this is not a rank's token")
        attempt, rank, incarnation = text.split(".")
        return RankIdentity(AttemptId.parse(attempt), int(rank), int(incarnation))

    def key(self, attempt: AttemptId, rank: int) -> str:
        """What shows a rank that one is of its attempt; always the same. Hexadecimal."""
        return self._sign(f"key.{attempt}.{rank}")

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
