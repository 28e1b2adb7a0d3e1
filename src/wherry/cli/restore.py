"""
``wherry restore``: replace the state of this machine's control plane by a backup.

What was there stays aside until the control plane has started on the backup; if it does not, it
is put back. Runs on this machine while nobody else writes: the control plane is stopped first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wherry import settings
from wherry.cli import options
from wherry.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from wherry.core.api import Status

#: What a backup holds, and what it replaces.
DATABASE = "wherry.db"
_STATE = re.compile(r"wherry\.db|secret|token|blobs(/[0-9a-f]{2})?(/[0-9a-f]{64})?")
_BLOB = re.compile(r"blobs/(?:.*/)?([0-9a-f]{64})")
_REPLACED = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "secret", "token", "blobs")


@click.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.json_option
def restore(path: Path, yes: bool, as_json: bool) -> None:
    """Replace all runs, logs, metrics and files of this machine by a backup."""
    from wherry.cli import output

    home = settings.home()
    if not path.is_file():
        raise InvalidInput(f"there is no file {str(path)!r}", hint="wherry backup writes one")
    if not yes and (home / DATABASE).exists():
        _confirm(home)
    replace(home, path)
    found: Status = options.connect("local").status()
    output.thing(
        found,
        lambda s: [("home", s.home), ("url", s.url)],
        json=as_json,
    )


def _confirm(home: Path) -> None:
    import sys

    if not sys.stdin.isatty():
        raise Conflict(f"{home} has runs that would be replaced", hint="--yes replaces them")
    click.confirm(f"Replace everything in {home}?", abort=True, err=True)


def replace(home: Path, backup: Path) -> None:
    """
    Make the backup the state of ``home`` and start its control plane.

    :raises InvalidInput: where the file is no backup; nothing has changed then.
    :raises Conflict: while runs are active. :raises WherryError: where the control plane does not
        start on it; then everything is as it was.
    """
    from wherry.sdk.connect import find_server, stop_server

    settings.make_home(home)
    work = home / f"restore-{os.urandom(6).hex()}"
    new, old = work / "new", work / "old"
    for folder in (work, new, old):
        folder.mkdir(mode=0o700)
    try:
        unpack(backup, new)
        running = find_server(home) is not None
        if running:
            _refuse_active()
        stop_server(home)
    except BaseException:
        shutil.rmtree(work)
        raise
    _exchange(home, new, old, running=running)
    shutil.rmtree(work)


def _exchange(home: Path, new: Path, old: Path, *, running: bool) -> None:
    """Put ``new`` in place and start on it, or put everything back. ``old`` stays if both fail."""
    from wherry.sdk.connect import start_server

    try:
        _swap(home, new, old)
        start_server(home)
    except BaseException:
        _swap(home, old, new)
        shutil.rmtree(new.parent)
        if running:
            start_server(home)
        raise


def _refuse_active() -> None:
    active = sum(
        count
        for state, count in options.connect("local").status().runs.items()
        if state in ("starting", "running")
    )
    if active:
        raise Conflict(f"{active} runs are active", hint="stop them: wherry ps, wherry stop RUN")


def _swap(home: Path, new: Path, old: Path) -> None:
    """Move the state of ``home`` to ``old`` and that of ``new`` into its place."""
    for source, target in ((home, old), (new, home)):
        for name in _REPLACED:
            if (source / name).exists():
                (source / name).rename(target / name)


def unpack(backup: Path, folder: Path) -> None:
    """
    The backup's files below ``folder``, private to this person and checked against their digests.

    :raises InvalidInput: where it is not a backup, is cut off, or holds anything else.
    """
    from wherry.core.bundle import blob_path, check_path

    try:
        with tarfile.open(backup) as tar:
            for member in tar:
                name = check_path(member.name.removeprefix("./").rstrip("/") or ".")
                if not _STATE.fullmatch(name) or not (member.isfile() or member.isdir()):
                    raise InvalidInput(f"{backup} is no backup: it holds {member.name[:200]!r}")
                blob = _BLOB.fullmatch(name)
                target = folder / (f"blobs/{blob_path(blob[1])}" if blob else name)
                if member.isdir():
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(tar, member, target)
    except (tarfile.TarError, EOFError):
        raise InvalidInput(
            f"{backup} is no backup, or it is cut off", hint="wherry backup writes one"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{backup} cannot be read: {error.strerror or error}") from None
    try:
        with open(folder / DATABASE, "rb") as database:
            begins = database.read(15)
    except FileNotFoundError:
        begins = b""
    if begins != b"SQLite format 3":
        raise InvalidInput(f"{backup} is no backup: it has no database")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    seen = hashlib.sha256()
    with open(target, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        while piece := source.read(1 << 20):
            seen.update(piece)
            out.write(piece)
    if re.fullmatch(r"[0-9a-f]{64}", target.name) and seen.hexdigest() != target.name:
        raise InvalidInput(f"the backup is damaged: {member.name} has another digest")
