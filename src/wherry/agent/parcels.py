"""
Values on their way: pickled once, what is large beside them as blobs, by digest.

Used by ``sdk.pool`` and by ``agent.pool``, which loads this file by its path. Standard library only
but for cloudpickle, where a value cannot be pickled without.

A **parcel** is a tuple ``(body, buffers)`` of what ``pickle`` wrote (protocol 5) and of the memory
that it left beside (NumPy arrays and what is made of them). Each is the bytes themselves or, where
they are large, the SHA-256 of the blob that holds them.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Union

PROTOCOL = 5  # Python 3.8 and later
BODY = 256 * 1024  #: a pickle larger than this is a blob
BUFFER = 64 * 1024  #: memory larger than this goes beside the pickle, so that it is sent once
_PIECE = 1 << 20
_MEMO = 256  # objects that a memo keeps alive at most

Part = Union[bytes, str]
Parcel = tuple[Part, list[Part]]


class Source:
    """Bytes that are to be a blob: of a file or of memory. ``pieces`` may be read repeatedly."""

    def __init__(self, digest: str, size: int, pieces: Callable[[], Iterator[bytes]]) -> None:
        self.digest, self.size, self.pieces = digest, size, pieces


#: Keeps a blob before the parcel that names it is sent. The source is good until it returns.
Keep = Callable[[Source], None]


class _Spool:
    """What a pickler writes to: memory at first, then a file that has no name."""

    def __init__(self, folder: str | None, most: int | None = None) -> None:
        self._folder, self._most = folder, most
        self._parts: list[bytes] = []
        self._file: Any = None
        self._sha = hashlib.sha256()
        self._tail = b""
        self.size = 0
        self.of_main = False  # whether it names __main__, which is another one elsewhere

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self._most is not None and self.size + view.nbytes > self._most:
            raise _Large
        head = self._tail + bytes(view[:8])
        if not self.of_main and (b"__main__" in head or _contains(view, b"__main__")):
            self.of_main = True
        self._tail = bytes(view[-8:])
        self.size += view.nbytes
        if self._file is None and self.size > BODY:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            for part in self._parts:
                self._sha.update(part)
                self._file.write(part)
            self._parts = []
        if self._file is None:
            self._parts.append(bytes(view))
        else:
            self._sha.update(view)
            self._file.write(view)
        return view.nbytes

    def part(self, keep: Keep) -> Part:
        if self._file is None:
            return b"".join(self._parts)
        file = self._file

        def pieces() -> Iterator[bytes]:
            file.seek(0)
            return iter(lambda: file.read(_PIECE), b"")

        source = Source(self._sha.hexdigest(), self.size, pieces)
        with file:
            keep(source)
        return source.digest


def _contains(view: memoryview, word: bytes) -> bool:
    """In pieces: a large value is not copied to be searched."""
    for at in range(0, view.nbytes, _PIECE):
        if word in bytes(view[at : at + _PIECE + len(word)]):
            return True
    return False


#: Memory whose digest is known: the id of the object that has it → that object, and the digest.
Memo = dict[int, tuple[Any, str]]


def pack(
    value: Any,
    keep: Keep,
    *,
    beside: bool = True,
    folder: str | None = None,
    memo: Memo | None = None,
    fixed: Memo | None = None,
) -> Parcel:
    """
    A parcel of ``value``; what is large is handed to ``keep``.

    By value what lives in ``__main__``, a notebook, a lambda or a closure.

    :param beside: let memory lie beside the pickle. :param folder: for temporary files.
    :param memo: spares looking again at memory that does not change while the memo lives.
    :param fixed: the same of bytes and text, which never change.
    :raises Exception: what pickling raises.
    """
    how = _How(keep, beside, folder, memo, {} if fixed is None else fixed)
    try:
        try:
            spool, buffers = _pickle(pickle.Pickler, value, how, most=BODY)
        except _Large:
            spool, buffers = _pickle(_Pickler, value, how)
        if not spool.of_main:
            return spool.part(keep), buffers
    except Exception:
        pass
    import cloudpickle  # type: ignore[import-untyped]

    kind = type("_CloudPickler", (_Apart, cloudpickle.Pickler), {})
    spool, buffers = _pickle(kind, value, how)
    return spool.part(keep), buffers


class _How(NamedTuple):
    keep: Keep
    beside: bool
    folder: str | None
    memo: Memo | None
    fixed: Memo


class _Large(Exception):
    """The pickle grows large, so bytes and text in it are laid apart."""


class _Apart:
    """Of a pickler: leaves large bytes and text out, each by its digest."""

    how: Any = None

    def persistent_id(self, value: Any) -> Any:
        kind = value.__class__
        if kind not in _KINDS or len(value) < BUFFER:
            return None
        fixed = self.how.fixed
        if kind is not bytearray and id(value) in fixed:
            return kind.__name__, fixed[id(value)][1]
        raw = memoryview(value.encode("utf-8", "surrogatepass") if kind is str else value)
        source = Source(hashlib.sha256(raw).hexdigest(), raw.nbytes, lambda: _slices(raw))
        self.how.keep(source)
        if kind is not bytearray and len(fixed) < _MEMO:
            fixed[id(value)] = value, source.digest
        return kind.__name__, source.digest


_KINDS: dict[Any, Any] = {
    bytes: bytes,
    bytearray: bytearray,
    str: lambda data: str(data, "utf-8", "surrogatepass"),
}


class _Pickler(_Apart, pickle.Pickler):
    pass


class _Unpickler(pickle.Unpickler):
    fetch: Any = None

    def persistent_load(self, pid: Any) -> Any:
        name, digest = pid
        make = next(make for kind, make in _KINDS.items() if kind.__name__ == name)
        return make(self.fetch(digest))


def _pickle(
    kind: Any, value: Any, how: _How, *, most: int | None = None
) -> tuple[_Spool, list[Part]]:
    spool = _Spool(how.folder, most)
    buffers: list[Part] = []
    memo = how.memo

    def lay_beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BUFFER:
            return True
        owner = _owner(raw)
        if memo is not None and id(owner) in memo:
            buffers.append(memo[id(owner)][1])
            return False
        source = Source(hashlib.sha256(raw).hexdigest(), raw.nbytes, lambda: _slices(raw))
        how.keep(source)
        buffers.append(source.digest)
        if memo is not None and len(memo) < _MEMO:
            memo[id(owner)] = owner, source.digest
        return False

    pickler = kind(spool, PROTOCOL, buffer_callback=lay_beside if how.beside else None)
    if most is None:
        pickler.how = how
    pickler.dump(value)
    return spool, buffers


def _owner(raw: memoryview) -> Any:
    """Whose memory this is: an array in Fortran's order is pickled through a view made for that."""
    base = getattr(raw.obj, "base", None)
    return base if getattr(base, "nbytes", -1) == raw.nbytes else raw.obj


def _slices(raw: memoryview) -> Iterator[bytes]:
    return (bytes(raw[at : at + _PIECE]) for at in range(0, raw.nbytes, _PIECE))


def unpack(parcel: Parcel, fetch: Callable[[str], Any]) -> Any:
    """
    The value of a parcel. ``fetch`` gives the memory of a blob, writable, this caller's own.

    :raises Exception: what unpickling raises.
    """
    body, buffers = parcel
    data = fetch(body) if isinstance(body, str) else body
    memory = [fetch(b) if isinstance(b, str) else bytearray(b) for b in buffers]
    # A mapped file is read in place; all others are small or come from memory anyway.
    file: Any = data if isinstance(data, mmap.mmap) else io.BytesIO(data)
    unpickler = _Unpickler(file, buffers=memory)
    unpickler.fetch = fetch
    return unpickler.load()


class Cache:
    """
    Blobs as files of one folder, shared by the workers of a run on one machine.

    ``limit``: bytes; what was used longest ago goes first. ``download(digest, write)`` fetches one.
    """

    def __init__(
        self,
        folder: str,
        download: Callable[[str, Callable[[bytes], Any]], None],
        limit: int = 8 << 30,
    ) -> None:
        self._folder, self._download, self._limit = folder, download, limit
        os.makedirs(folder, exist_ok=True)

    def fetch(self, digest: str) -> Any:
        """Its memory: shared with every worker until it is written to, then the caller's own."""
        import fcntl

        path = os.path.join(self._folder, digest)
        while True:
            try:
                return self._map(path)
            except FileNotFoundError:
                pass
            with open(path + ".lock", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # one download a machine
                if not os.path.exists(path):
                    self._get(digest, path)

    def _map(self, path: str) -> Any:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return bytearray()
            os.utime(path)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _get(self, digest: str, path: str) -> None:
        sha = hashlib.sha256()
        partial = path + ".partial"
        with open(partial, "wb") as file:

            def write(data: bytes) -> None:
                sha.update(data)
                file.write(data)

            self._download(digest, write)
        if sha.hexdigest() != digest:
            raise OSError(f"blob {digest} arrived with another content")
        self._make_room(os.path.getsize(partial))
        os.replace(partial, path)

    def _make_room(self, wanted: int) -> None:
        # A file that somebody has mapped stays readable to them when its name goes.
        found = []
        for entry in os.scandir(self._folder):
            if "." not in entry.name:
                try:
                    found.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
                except FileNotFoundError:
                    continue
        total = wanted + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                break
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            total -= size
