"""``wherry files`` and ``wherry get``: what a run kept, and copying it out."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from wherry.cli import options
from wherry.errors import Conflict, InvalidInput, NotFound, Unavailable, UnsafePath

if TYPE_CHECKING:
    from wherry.core.run import File
    from wherry.sdk.client import Client


@click.command()
@options.run_argument
@options.on_option
@options.json_option
def files(ref: str, on: str, as_json: bool) -> None:
    """List the files that a run kept."""
    from wherry.cli.output import Column, ago, listing
    from wherry.core.job import format_bytes

    now = time.time()
    listing(
        options.connect(on).files(ref),
        [
            Column("PATH", lambda file: file.path),
            Column("RANK", lambda file: str(file.rank), right=True),
            Column("SIZE", lambda file: format_bytes(file.size), right=True),
            Column("MODIFIED", lambda file: ago(file.modified, now)),
            Column("DIGEST", lambda file: file.digest[:12]),
        ],
        json=as_json,
        empty="no files\nhint: what a script writes to wherry.output_dir is kept",
    )


class Copied(Struct, frozen=True, kw_only=True):
    """A file of a run and where it is on this machine."""

    path: str
    rank: int
    size: int
    digest: str
    to: str


@click.command()
@options.run_argument
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="Default: ./NAME-ID of the run."
)
@click.option("--force", is_flag=True, help="Replace files that differ.")
@options.on_option
@options.json_option
def get(
    ref: str, paths: tuple[str, ...], folder: Path | None, force: bool, on: str, as_json: bool
) -> None:
    """
    Copy a run's files to a folder: all of them, or those named.

    PATH is a file, a folder or a pattern such as "*.json". Files of another rank than 0 go to
    rank-N/ where two ranks kept the same path. Every file is checked against its digest.
    """
    from wherry.cli import output
    from wherry.core.job import usable_name

    client = options.connect(on)
    run = client.run(ref).run
    chosen = choose(client.files(run.id), paths, run.id)
    target = folder or Path(f"{usable_name(run.name)}-{run.id}" if run.name else run.id)
    plan = [(file, target / to) for file, to in placed(chosen)]
    stale = [(file, to) for file, to in plan if not _same(file, to)]
    if not force and (existing := [to for _, to in stale if os.path.lexists(to)]):
        raise Conflict(
            f"{existing[0]} is there and differs" + _others(len(existing) - 1),
            hint="--force replaces what differs, --to names another folder",
        )
    for file, to in stale:
        try:
            _fetch(client, run.id, file, target, to)
        except OSError as error:
            raise InvalidInput(f"{error.filename or to}: {error.strerror}") from None
    copied = [
        Copied(path=file.path, rank=file.rank, size=file.size, digest=file.digest, to=str(to))
        for file, to in plan
    ]
    if as_json:
        output.as_json(copied)
    else:
        output.write("".join(f"{item.to}\n" for item in copied))


def choose(known: Iterable[File], paths: Iterable[str], run: str) -> list[File]:
    """The files that are meant: all where none is named. :raises NotFound: for one that is not."""
    known = list(known)
    chosen: dict[tuple[str, int], File] = {}
    for path in [path.rstrip("/") for path in paths] or ["*"]:
        fits = [
            file
            for file in known
            if file.path == path
            or file.path.startswith(path + "/")
            or fnmatch.fnmatchcase(file.path, path)
        ]
        if not fits:
            what = (
                f"run {run} keeps no file {path!r}" if path != "*" else f"run {run} kept no files"
            )
            raise NotFound(what, hint=f"wherry files {run} lists them")
        chosen |= {(file.path, file.rank): file for file in fits}
    return list(chosen.values())


def placed(files: Iterable[File]) -> list[tuple[File, str]]:
    """
    Each file with its place below the folder.

    :raises UnsafePath: for one that would leave it.
    """
    from wherry.core.bundle import check_path

    files = list(files)
    times = Counter(file.path for file in files)
    return [
        (
            file,
            check_path(f"rank-{file.rank}/" * (file.rank > 0 and times[file.path] > 1) + file.path),
        )
        for file in files
    ]


def _same(file: File, path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.digest


def _fetch(client: Client, run: str, file: File, folder: Path, to: Path) -> None:
    """One file, whole or not at all. :raises Unavailable: where other bytes arrive."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.parent.resolve().is_relative_to(folder.resolve()):
        raise UnsafePath(f"{to} leaves {folder} by a link")
    part = to.parent / f".{os.urandom(6).hex()}.part"
    seen = hashlib.sha256()
    try:
        with open(part, "xb") as stream:
            for piece in client.download(run, file.path, rank=file.rank):
                seen.update(piece)
                stream.write(piece)
        if seen.hexdigest() != file.digest:
            raise Unavailable(f"{file.path} arrived damaged", hint="try again")
        os.replace(part, to)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _others(count: int) -> str:
    return f", and {count} others" if count else ""
