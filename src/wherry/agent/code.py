"""
The bundle's copy: where the program works when it does not work in place.

Called by ``agent.prepare``, and by ``agent.main`` when the program has ended: for the files that it
made there, and for the words about one that was left out of the bundle. A bundle is fetched once
per machine (``cache/trees/DIGEST``) and copied once per attempt (``shared_dir/code``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wherry.agent import protocol
from wherry.agent.calls import Control
from wherry.agent.errors import Failed

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_FOUND = re.compile(
    r"(?:FileNotFoundError|No such file or directory|NoSuchKey|does not exist|not found).*?"
    r"['\"]([^'\"]+)['\"]"
)
_BARE = re.compile(r"FileNotFoundError: (?!\[)(\S+?)(?: not found| does not exist|\.?$)")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_path(path: str) -> str:
    """``path`` if it is relative and stays in its folder. :raises Failed: otherwise."""
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise Failed("bundle", f"the bundle holds the unsafe path {path[:200]!r}")
    return path


class Code:
    """The code of one attempt on this machine."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._digest: str = config["spec"].get("code", {}).get("bundle", "")
        self._workdir: str = config["spec"].get("code", {}).get("workdir", ".")
        self._trees = Path(config["cache"]) / "trees"
        self.folder = Path(config["shared_dir"]) / "code"
        self.manifest: dict[str, Any] = {"entries": [], "left_out": []}

    @property
    def workdir(self) -> Path:
        """The working folder inside the copy."""
        return self.folder / self._workdir

    def make(self, control: Control) -> None:
        """
        Fetch what is missing and copy it, unless another rank has.

        :raises Failed: :raises Unreachable: :raises Replaced:
        """
        if self._digest:
            tree = self._fetch(control)
            self.manifest = json.loads((tree / "manifest.json").read_bytes())
        with locked(self.folder.with_name("code.lock")):
            if not self.folder.exists():
                partial = self.folder.with_name("code.partial")
                shutil.rmtree(partial, ignore_errors=True)
                if self._digest:
                    shutil.copytree(tree / "files", partial, symlinks=True)
                self._workdir_of(partial).mkdir(parents=True, exist_ok=True)
                partial.rename(self.folder)

    def new_files(self) -> list[str]:
        """
        Paths, relative to the copy, of regular files that the bundle does not have, or has with
        another content.
        """
        known = {entry["path"]: entry for entry in self.manifest["entries"]}
        found = []
        for folder, below, names in os.walk(self.folder):
            below[:] = sorted(name for name in below if name != "__pycache__")
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if os.path.islink(self.folder / path):
                    continue
                if path not in known or self._changed(path, known[path]):
                    found.append(path)
        return found

    def _changed(self, path: str, entry: dict[str, Any]) -> bool:
        """Whether the file is not as it came. The copy has the times of the tree: most are."""
        ours = self.folder / path
        with contextlib.suppress(OSError):
            now, then = os.stat(ours), os.lstat(self._trees / self._digest / "files" / path)
            if (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns):
                return False
        try:
            with open(ours, "rb") as file:
                check = hashlib.sha256()
                for block in iter(lambda: file.read(2**20), b""):
                    check.update(block)
        except OSError:
            return True  # who keeps it says why it cannot be read
        return check.hexdigest() != entry.get("digest")

    def explain(self, lines: Sequence[str]) -> tuple[str, str] | None:
        """
        The message and the hint, where a program that printed ``lines`` did not find a file that
        the bundle does not have; else None.
        """
        for line in reversed(lines):
            match = _NOT_FOUND.search(line) or _BARE.search(line)
            if match:
                wanted = match[1]
                path = os.path.relpath(self.workdir / wanted, self.folder)
                inside = not path.startswith("..") and not os.path.lexists(self.folder / path)
                return self._words(path) if inside else None
        return None

    def _words(self, path: str) -> tuple[str, str]:
        for left in self.manifest["left_out"]:
            name = str(left["path"]).rstrip("/")
            if path == name or path.startswith(name + "/"):
                why = f"{name!r} was left out of the bundle: {left['why']}"
                break
        else:
            why = "an ignore rule left it out, or it was not there when the run was made"
        message = f"{path!r} is not in the bundle's copy that the run works in; {why}"
        hint = f"let it travel: write !{path} into .wherryignore; or run it in the foreground"
        return message, f"{hint}, which works in the project's own folder"

    def _workdir_of(self, folder: Path) -> Path:
        return folder if self._workdir in ("", ".") else folder / check_path(self._workdir)

    # --- the tree that all attempts share
    def _fetch(self, control: Control) -> Path:
        if not _DIGEST.fullmatch(self._digest):
            raise Failed("bundle", f"{self._digest[:80]!r} is not a digest")
        tree = self._trees / self._digest
        if not tree.exists():
            with locked(self._trees / f"{self._digest}.lock"):
                if not tree.exists():
                    self._fill(tree, control)
        with contextlib.suppress(OSError):
            os.utime(tree)  # when it was used last, for pruning
        return tree

    def _fill(self, tree: Path, control: Control) -> None:
        with control.stream("GET", f"/blobs/{self._digest}") as read:
            text = b"".join(iter(lambda: read(2**20), b""))
        if hashlib.sha256(text).hexdigest() != self._digest:
            raise Failed("bundle", f"bundle {self._digest} came with other bytes")
        manifest = json.loads(text)
        entries = manifest.get("entries", [])
        partial = tree.with_name(f"{self._digest}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        files = partial / "files"
        files.mkdir(parents=True)
        by_digest: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            path = files / check_path(entry["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.get("link"):
                _link(files, path, entry["link"])
            else:
                by_digest.setdefault(entry["digest"], []).append(entry)
        if by_digest:
            _fetch_blobs(control, files, by_digest)
        known = {"entries": entries, "left_out": manifest.get("left_out", [])}
        (partial / "manifest.json").write_text(json.dumps(known))
        partial.rename(tree)


def _link(files: Path, path: Path, target: str) -> None:
    inside = os.path.normpath(os.path.join(os.path.relpath(path.parent, files), target))
    if os.path.isabs(target) or inside.split("/")[0] == "..":
        raise Failed("bundle", f"the bundle holds a link out of its folder: {target[:200]!r}")
    os.symlink(target, path)


def _fetch_blobs(control: Control, files: Path, by_digest: dict[str, list[dict[str, Any]]]) -> None:
    """Write every file from one pack. :raises Failed: where a blob is missing or is not itself."""
    missing = set(by_digest)
    body = json.dumps({"digests": sorted(by_digest)}).encode()
    with control.stream("POST", "/blobs/fetch", body) as read:
        for digest, _size, pieces in protocol.iter_pack(read):
            first, *others = [files / e["path"] for e in by_digest.get(digest, ())] or [None]
            if first is None:
                raise Failed("bundle", f"blob {digest} was not asked for")
            check = hashlib.sha256()
            with open(first, "wb") as file:
                for piece in pieces:
                    check.update(piece)
                    file.write(piece)
            if check.hexdigest() != digest:
                raise Failed("bundle", f"blob {digest} came with other bytes")
            for other in others:
                shutil.copyfile(first, other)
            for entry in by_digest[digest]:
                if entry.get("executable"):
                    os.chmod(files / entry["path"], 0o755)
            missing.discard(digest)
    if missing:
        raise Failed("bundle", f"{len(missing)} files of the bundle did not come")
