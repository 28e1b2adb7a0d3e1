"""
Capture a project: which files travel, by digest, and which do not, by name.

Called by ``sdk`` for every run. Unchanged files cost one ``lstat`` each.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry import settings
from wherry.agent.protocol import pack_item
from wherry.bundle.guards import SCAN_LIMIT, secret_content, secret_name
from wherry.bundle.statcache import Known, StatCache, stat_key
from wherry.bundle.walk import IGNORE_FILE, TooManyFiles, list_files, too_broad
from wherry.core.bundle import Entry, LeftOut, Manifest
from wherry.core.job import format_bytes
from wherry.errors import BundleError, ChangedDuringCapture, FileTooLarge, LinkOutOfTree

#: A folder with more files, and without git or a ``pyproject.toml``, is not taken for a project.
MANY_FILES = 20_000

_PIECE = 1 << 20
_WRITTEN = "was being written to while the project was captured"
_LARGE, _LINK = "large: ", "a link to "  # how their reasons begin


@dataclass(frozen=True)
class Captured:
    """A project as it was: the manifest, and where each digest's bytes are."""

    manifest: Manifest
    root: Path
    paths: Mapping[str, str] = field(repr=False)  #: digest → path relative to root

    def path_of(self, digest: str) -> Path:
        """A file with this content. :raises KeyError: where none of the manifest has it."""
        return self.root / self.paths[digest]


def capture(
    root: Path,
    *,
    cache: Path,
    script: Path | None = None,
    large: Literal["refuse", "leave-out"] = "refuse",
    max_file: int | None = None,
    unsettled: Collection[str] = (),
) -> Captured:
    """
    The project in ``root`` as a manifest.

    Secrets and what cannot travel are named in ``manifest.left_out``. With ``large="leave-out"`` so
    is what would be an error otherwise: the run works in the folder itself and the bundle is a
    record. ``script`` travels even where an ignore rule hides it. ``max_file``: bytes, by default
    the setting. ``cache``: a folder for the stat cache. ``unsettled``: paths to leave out because
    they are written to all the time.

    :raises FileTooLarge: a file over ``max_file``.
    :raises LinkOutOfTree: a symbolic link that is absolute or leaves ``root``.
    :raises ChangedDuringCapture: a file that was written to while it was read, twice.
    :raises BundleError: a file that cannot be read.
    """
    root = root.resolve()
    limit = settings.get("max_file") if max_file is None else max_file
    capturing = _Capturing(root, StatCache(cache, root), limit, strict=large == "refuse")
    paths, wanted = capturing.list(script)
    for path in sorted(paths.difference(unsettled)):
        capturing.add(path, allowed=path in wanted)
    for path in sorted(paths.intersection(unsettled)):
        capturing.skip(path, _WRITTEN)
    capturing.cache.save()
    return capturing.result()


def unrecorded(manifest: Manifest) -> tuple[LeftOut, ...]:
    """What a run in place works with and its record does without: large files, links away."""
    return tuple(left for left in manifest.left_out if left.why.startswith((_LARGE, _LINK)))


class _Capturing:
    """One capture under way."""

    def __init__(self, root: Path, cache: StatCache, limit: int, *, strict: bool) -> None:
        self.root, self.cache, self.limit, self.strict = root, cache, limit, strict
        self.entries: list[Entry] = []
        self.left_out: list[LeftOut] = []
        self.too_large: list[tuple[int, str]] = []
        self.paths: dict[str, str] = {}

    def list(self, script: Path | None) -> tuple[set[str], set[str]]:
        """The paths to add, and those of them that the person asked for by name."""
        ours = None
        if script is not None and (file := script.resolve()).is_relative_to(self.root):
            ours = file.relative_to(self.root).as_posix()
        try:
            if too_broad(self.root):
                raise TooManyFiles
            paths, wanted = list_files(self.root, limit=MANY_FILES)
        except TooManyFiles:
            beside = self.root / os.path.dirname(ours or "")
            paths = {f.relative_to(self.root).as_posix() for f in beside.glob("*.py")}
            wanted = set()
            why = "not a project (no git, no pyproject.toml): only the script and *.py beside it"
            self.left_out.append(LeftOut(path=".", why=why))
        return (paths | {ours}, wanted | {ours}) if ours else (paths, wanted)

    def skip(self, path: str, why: str) -> None:
        """Name a file that does not travel."""
        shown = path.encode("utf-8", "backslashreplace").decode()
        self.left_out.append(LeftOut(path=shown, why=why))

    def refuse(self, path: str, why: str, error: Callable[[], BundleError]) -> None:
        """Raise, or leave the file out where the bundle is only a record."""
        if self.strict:
            raise error()
        self.skip(path, why)

    def add(self, path: str, *, allowed: bool) -> None:
        """Take one path in, or say why not. ``allowed``: even where it looks like a secret."""
        if not allowed and (why := secret_name(path)):
            return self.skip(path, why)
        try:
            st = os.lstat(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None  # git lists deleted files that are still tracked
        if why := _unportable(path):
            return self.skip(path, why)
        if stat.S_ISLNK(st.st_mode):
            return self.add_link(path)
        if not stat.S_ISREG(st.st_mode):
            return self.skip(path, "not a regular file")
        if st.st_size > self.limit:
            self.too_large.append((st.st_size, path))
            return None
        known = self.cache.get(path, stat_key(st)) or self.hash(path)
        if known is None:
            return None
        if known.secret and not allowed:
            return self.skip(path, known.secret)
        executable = bool(st.st_mode & 0o100)
        self.entries.append(
            Entry(path=path, digest=known.digest, size=known.stat[0], executable=executable)
        )
        self.paths[known.digest] = path
        return None

    def add_link(self, path: str) -> None:
        """A link stays a link, if all of it stays inside."""
        target = os.readlink(f"{self.root}/{path}")
        lexical = os.path.normpath(f"{os.path.dirname(path)}/{target}".lstrip("/"))
        real = Path(os.path.realpath(f"{self.root}/{path}"))
        out = os.path.isabs(target) or lexical.split("/")[0] == ".."
        if out or not real.is_relative_to(self.root):
            why = f"{_LINK}{target}, which is outside of the project"
            hint = f"copy the file in, link to it relatively, or add {path} to {IGNORE_FILE}"
            self.refuse(path, why, lambda: LinkOutOfTree(f"{path} is {why}", hint=hint))
        elif why := _unportable(target):
            self.skip(path, why)
        else:
            self.entries.append(Entry(path=path, link=target))

    def hash(self, path: str) -> Known | None:
        """What reading the file finds; None where it was left out."""
        try:
            for _ in range(2):
                hashed_at = time.time_ns()
                if known := _hash(f"{self.root}/{path}"):
                    self.cache.put(path, known, hashed_at)
                    return known
        except FileNotFoundError:
            return None  # deleted meanwhile: as if a moment before
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
            hint = f"make it readable, or add it to {IGNORE_FILE}"
            self.refuse(path, why, lambda: BundleError(f"{path} {why}", hint=hint))
            return None
        why = _WRITTEN
        hint = f"wait for the writer, or add {path} to {IGNORE_FILE}"
        self.refuse(path, why, lambda: ChangedDuringCapture(f"{path} {why}", hint=hint))
        return None

    def result(self) -> Captured:
        """What was captured. :raises FileTooLarge:"""
        if self.too_large and self.strict:
            size, path = max(self.too_large)
            others = len(self.too_large) - 1
            more = f" ({others} more such file{'s' * (others > 1)})" if others else ""
            raise FileTooLarge(
                f"{path} has {format_bytes(size)}, more than {format_bytes(self.limit)}{more}",
                hint=f"add it to {IGNORE_FILE}, or allow it: WHERRY_MAX_FILE={size}",
            )
        for size, path in self.too_large:
            self.skip(path, f"{_LARGE}{format_bytes(size)}, more than {format_bytes(self.limit)}")
        manifest = Manifest(entries=tuple(self.entries), left_out=tuple(sorted(self.left_out)))
        return Captured(manifest=manifest, root=self.root, paths=self.paths)


def _unportable(path: str) -> str:
    """Why this name cannot travel; "" where it can."""
    if "\\" in path:
        return "its name holds a backslash"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""


def _hash(file: str) -> Known | None:
    """The file's digest, and whether it holds a secret; None where it changed on the way."""
    sha = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        before = stat_key(os.fstat(stream.fileno()))
        text = b""
        while piece := stream.read(_PIECE):
            sha.update(piece)
            if before[0] <= SCAN_LIMIT:
                text += piece
        # By path: a file that was replaced by rename is another inode.
        after = stat_key(os.lstat(file))
    if before != after:
        return None
    return Known(stat=before, digest=sha.hexdigest(), secret=secret_content(text))


def write_pack(captured: Captured, digests: Iterable[str]) -> Iterator[bytes]:
    """
    The files with these digests as a pack (``agent.protocol.iter_pack``), in pieces.

    :raises ChangedDuringCapture: where a file is no longer what was captured. What was yielded by
        then is not a whole pack.
    """
    for digest in digests:
        path = captured.path_of(digest)
        changed = ChangedDuringCapture(
            f"{path} changed after the project was captured", hint="run the command again"
        )
        try:
            with open(path, "rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                head, sha = pack_item(digest, size), hashlib.sha256()
                while piece := stream.read(_PIECE):
                    sha.update(piece)
                    size -= len(piece)
                    # The last piece is held back until the digest is known to be right.
                    if size <= 0 and (size < 0 or sha.hexdigest() != digest):
                        raise changed
                    yield head + piece
                    head = b""
        except OSError:
            raise changed from None
        if size > 0 or (head and sha.hexdigest() != digest):
            raise changed
        if head:
            yield head
