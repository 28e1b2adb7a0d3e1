"""A package index of hand-made wheels, so that resolving and building need no network."""

import base64
import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: name → version → what it requires
PACKAGES: dict[str, dict[str, list[str]]] = {
    "alpha": {"1.0": [], "2.0": []},
    "beta": {"1.0": ["alpha>=1"]},
    "gamma": {"1.0": []},
    "tool": {"1.0": ["wherry"]},
    "wherry": {"99.0": ["delta"]},
    "delta": {"1.0": []},
    "old": {"1.0": ["gamma; python_version < '3.10'"]},
}


def make_wheel(folder: Path, name: str, version: str, requires: list[str]) -> Path:
    """A wheel with one module that says its version."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return file


def make_index(folder: Path) -> str:
    """Write the index; its URL."""
    files = folder / "files"
    files.mkdir(parents=True)
    for name, versions in PACKAGES.items():
        page = ""
        for version, requires in versions.items():
            wheel = make_wheel(files, name, version, requires)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            page += f'<a href="../../files/{wheel.name}#sha256={digest}">{wheel.name}</a>\n'
        (folder / "simple" / name).mkdir(parents=True)
        (folder / "simple" / name / "index.html").write_text(page)
    return f"file://{folder}/simple"


def pin(folder: Path, name: str, version: str) -> str:
    """A hashed requirement of a package of the index in the folder."""
    wheel = folder / "files" / f"{name}-{version}-py3-none-any.whl"
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The same index over HTTP, for as long as the block lasts; its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        finally:
            server.shutdown()
            thread.join()
