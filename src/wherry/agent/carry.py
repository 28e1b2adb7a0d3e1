"""
Carry checkpoints to the control plane and back, where no folder survives attempts.

``restore`` is called by ``agent.prepare`` before the program starts, the :class:`Carrier` by
``agent.main``: a thread that sends each checkpoint as soon as it is complete and, once the program
is over, the last one and what the program wrote into the folder by itself. What is sent counts when
all of it is there, so an upload that is cut off is never seen.

The ranks of a machine share the folder. A file in it, ``.wherry-sent.json``, says which of the
program's own files the control plane has: ``{path: [size, mtime in ns, digest]}``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wherry.agent import protocol
from wherry.agent.calls import Control, Refused, Replaced, Unreachable, persist
from wherry.agent.checkpoint import MANIFEST, OURS, Part, digest_of, parts
from wherry.agent.code import check_path
from wherry.agent.files import Uploader, outputs
from wherry.agent.journal import Journal
from wherry.agent.prepare import checkpoint_folder

PACE = 0.5  #: seconds between two looks at the folder
_SENT, _LOCK = f"{OURS}sent.json", f"{OURS}lock"


def restore(config: dict[str, Any], journal: Journal, stopped: threading.Event) -> None:
    """
    Put back what the control plane has and the folder lacks. Again, or by two ranks at once: the
    same. :raises Refused: :raises Unreachable: once stopped. :raises Replaced: :raises OSError:
    """
    control, root = Control(config), Path(checkpoint_folder(config))
    try:
        found = persist(lambda: control.call("GET", "/checkpoints"), stopped)["parts"]
        if not found:
            return
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            for part in found:
                if not part["name"]:
                    _restore_files(control, root, part["files"], stopped)
                elif _restore_part(control, root, part, stopped):
                    said = {"kind": "restored", "message": f"checkpoint {part['name']} is back"}
                    journal.append(protocol.EVENT, json.dumps(said).encode())
    finally:
        control.close()


class Carrier(threading.Thread):
    """``gone``: once set, what the control plane does not answer is given up."""

    def __init__(self, config: dict[str, Any], journal: Journal, gone: threading.Event) -> None:
        super().__init__(name="carrier", daemon=True)
        self._config, self._journal, self._gone = config, journal, gone
        self._root = Path(checkpoint_folder(config))
        self._control = Control(config)
        self._uploader = Uploader(self._control, journal, gone)
        self._over = threading.Event()
        self._sent: set[str] = set()  # digests of manifests

    def run(self) -> None:
        """The thread."""
        while not self._over.wait(PACE):
            try:
                self._send_new()
            except (Replaced, Unreachable):
                return
            except Exception:
                # The next one may do better, and the end tries again.
                traceback.print_exc()

    def finish(self) -> None:
        """
        The program is over: send the rest. :raises Replaced: :raises Unreachable: once gone.
        """
        self._over.set()
        self.join()
        try:
            if self._root.is_dir():
                self._send_new()
                with _locked(self._root):
                    self._send_files()
        except (OSError, Refused) as error:
            self._journal.say(f"what is in the checkpoint folder is not kept: {error}")
        finally:
            self._control.close()

    # --- checkpoints
    def _send_new(self) -> None:
        """
        Of whole checkpoints the newest is enough; of shards each is needed, as the others send
        theirs.
        """
        ours = [part for part in parts(self._root) if self._is_ours(part)]
        whole = [part for part in ours if part.shard is None]
        for part in [*(p for p in ours if p.shard is not None), *whole[-1:]]:
            with contextlib.suppress(FileNotFoundError):  # the program removed it
                self._send(part)

    def _is_ours(self, part: Part) -> bool:
        """Whether this rank's program made it, in this attempt."""
        mine = f"{self._config['run']}-{self._config['attempt']}/{self._config['rank']}/"
        return part.by.startswith(mine) or not part.by

    def _send(self, part: Part) -> None:
        digest = digest_of(part.path / MANIFEST)
        if digest in self._sent:
            return
        try:
            with _kept(self._root, part) as folder:
                if folder is None:
                    return
                files = [self._stored(folder, path) for path in _paths(part)]
            promised = [(file["path"], file["digest"]) for file in part.files]
            if promised == [(file["path"], file["digest"]) for file in files[:-1]]:
                self._tell(part.name, files, step=part.step, shard=part.shard, shards=part.shards)
            else:
                self._journal.say(f"checkpoint {part.name} is not kept: it was changed afterwards")
        except Refused as error:
            self._journal.say(f"checkpoint {part.name} is not kept: {error}")
        self._sent.add(digest)

    def _stored(self, folder: Path, path: str) -> dict[str, Any]:
        digest, size, modified = self._uploader.store(folder / path)
        return {"path": path, "digest": digest, "size": size, "modified": modified}

    # --- the program's own files
    def _send_files(self) -> None:
        """Send what changed since it was sent or came back, and name what is gone."""
        known = _read_sent(self._root)
        there = [path for path in outputs(self._root, self._journal) if self._is_own(path)]
        changed, now = [], dict(known)
        for path in there:
            seen = os.stat(self._root / path)
            if known.get(path, [])[:2] == [seen.st_size, seen.st_mtime_ns]:
                continue
            try:
                changed.append(self._stored(self._root, path))
            except (OSError, Refused) as error:
                self._journal.say(f"{path} is not kept: {error}")
                continue
            now[path] = [seen.st_size, seen.st_mtime_ns, changed[-1]["digest"]]
        # On other machines a file may be missing for other reasons.
        gone = sorted(set(known) - set(there)) if self._config["rank"] == 0 else []
        if changed or gone:
            self._tell("", changed, gone=gone)
            _write_sent(self._root, {path: now[path] for path in now if path not in gone})

    def _is_own(self, path: str) -> bool:
        """Whether the program wrote it by itself."""
        if path.startswith(OURS) or "\\" in path or not path.isprintable() or len(path) > 4096:
            return False
        folders = [self._root / parent for parent in list(Path(path).parents)[:-1]]
        return not any((folder / MANIFEST).exists() for folder in folders)

    def _tell(self, name: str, files: list[dict[str, Any]], **fields: Any) -> None:
        body = json.dumps({"name": name, "files": files, **fields}).encode()
        persist(lambda: self._control.call("POST", "/checkpoints", body), self._gone)


# --- putting back


def _restore_part(
    control: Control, root: Path, part: dict[str, Any], stopped: threading.Event
) -> bool:
    """Fetch a checkpoint's folder; False where it is there."""
    target = root / check_path(part["name"])
    if (target / MANIFEST).exists():
        return False
    partial = root / f"{OURS}unfinished-{os.urandom(8).hex()}"
    try:
        for file in part["files"]:
            _fetch(control, partial, file, stopped)
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _restore_files(
    control: Control, root: Path, files: list[dict[str, Any]], stopped: threading.Event
) -> None:
    known = _read_sent(root)
    for file in files:
        path = root / check_path(file["path"])
        before = known.get(file["path"])
        if path.exists():
            seen = path.stat()
            if before is None or before[:2] != [seen.st_size, seen.st_mtime_ns]:
                continue  # the program changed it since: it is newer
            if before[2] == file["digest"]:
                continue
        _fetch(control, root, file, stopped)
        seen = path.stat()
        known[file["path"]] = [seen.st_size, seen.st_mtime_ns, file["digest"]]
    _write_sent(root, known)


def _fetch(control: Control, root: Path, file: dict[str, Any], stopped: threading.Event) -> None:
    """One file, whole or not at all."""
    target = root / check_path(file["path"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{OURS}{os.urandom(8).hex()}")

    def load() -> None:
        check = hashlib.sha256()
        with control.stream("GET", f"/blobs/{file['digest']}") as read, open(partial, "wb") as out:
            for block in iter(lambda: read(2**20), b""):
                check.update(block)
                out.write(block)
        if check.hexdigest() != file["digest"]:
            raise Unreachable(f"{file['path']} was cut off")

    try:
        persist(load, stopped)
        os.utime(partial, (file["modified"], file["modified"]))
        os.replace(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


# --- the folder


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Alone among the ranks of this machine."""
    with open(root / _LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _kept(root: Path, part: Part) -> Iterator[Path | None]:
    """
    The part by other names, so that the program may remove it meanwhile; None where it has.
    """
    aside = root / f"{OURS}sending-{os.urandom(8).hex()}"
    try:
        yield _linked(part, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _linked(part: Part, aside: Path) -> Path | None:
    try:
        for path in _paths(part):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(part.path / path, aside / path)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without links
        return part.path
    return aside


def _paths(part: Part) -> list[str]:
    """Its files, the manifest last."""
    return [*(str(file["path"]) for file in part.files), MANIFEST]


def _read_sent(root: Path) -> dict[str, list[Any]]:
    try:
        found: dict[str, list[Any]] = json.loads((root / _SENT).read_bytes())
        return found
    except (OSError, ValueError):
        return {}


def _write_sent(root: Path, sent: dict[str, list[Any]]) -> None:
    partial = root / f"{_SENT}.new"
    partial.write_text(json.dumps(sent))
    partial.replace(root / _SENT)
