"""
Bundles: code by digest. The manifest lists every file; the digest is of the manifest.
"""

from __future__ import annotations

import hashlib
import re

import msgspec
from msgspec import Struct

from wherry.errors import InvalidInput, UnsafePath

DIGEST = re.compile(r"[0-9a-f]{64}")


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, order=True):
    """One file or link of a bundle."""

    path: str  #: relative, with forward slashes
    digest: str = ""  #: SHA-256 of the content; "" for a link
    size: int = 0  #: bytes
    executable: bool = False
    link: str = ""  #: a link's target, relative and inside the tree


class LeftOut(Struct, frozen=True, kw_only=True, order=True):
    """A path that did not travel, and why: printed, so that nobody wonders."""

    path: str
    why: str


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A captured project. Entries are sorted by path."""

    entries: tuple[Entry, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def encode(self) -> bytes:
        """Canonical JSON: the same manifest gives the same bytes."""
        return msgspec.json.encode(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(e.size for e in self.entries)


def check_digest(text: str) -> str:
    """``text`` if it is a SHA-256 in hex. :raises InvalidInput: otherwise."""
    if not DIGEST.fullmatch(text):
        raise InvalidInput(f"{text[:80]!r} is not a SHA-256 digest")
    return text


def blob_path(digest: str) -> str:
    """Where a blob lies below the folder of all blobs: in folders of a manageable size."""
    return f"{digest[:2]}/{digest}"


def check_path(path: str) -> str:
    """
    ``path`` if it is relative and stays inside its folder.

    :raises UnsafePath: for "..", an absolute path, a backslash, NUL, or an empty part.
    """
    parts = path.split("/")
    bad = not path or len(path) > 4096 or any(c in path for c in "\\\0")
    if bad or any(p in ("", ".", "..") for p in parts) or re.match(r"[A-Za-z]:", path):
        raise UnsafePath(f"{path[:200]!r} is not a relative path inside its folder")
    return path
