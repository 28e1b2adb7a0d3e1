"""
Names for rows.

An id is a letter for its kind and eleven characters of time and chance: it sorts by age, is a legal
DNS label, and survives being read aloud (no i, l, o or u).
"""

from __future__ import annotations

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(kind: str) -> str:
    """A fresh id such as ``r6jz0k3m9x``: 30 bits of seconds, then 25 bits of chance."""
    value = (int(time.time()) & (2**30 - 1)) << 25 | secrets.randbits(25)
    return kind + "".join(ALPHABET[(value >> shift) & 31] for shift in range(50, -1, -5))


def new_token(kind: str) -> str:
    """A fresh bearer token such as ``wr_…``: 256 bits of chance."""
    return f"{kind}_{secrets.token_urlsafe(32)}"
