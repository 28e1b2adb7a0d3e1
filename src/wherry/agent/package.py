"""
The agent as one zip, named by its digest, and as a folder that starts fast.

Called by ``server.app``. The zip holds::

    __main__.py       python FOLDER/__main__.py CONFIG runs the agent
    wherry_call.py    runs a function instead of a script: agent/call.py
    wherry_rsh.py     starts what mpirun wants started elsewhere: agent/remote.py
    wherry_pool.py    serves the tasks of wherry.map: agent/pool.py
    wherry/           the agent; its __init__.py is agent/shim.py
    _vendor/          cloudpickle, for functions that travel by value
"""

from __future__ import annotations

import compileall
import hashlib
import io
import os
import py_compile
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_MAIN = '''\
"""Runs the agent: python FOLDER/__main__.py CONFIG"""

import os
import sys

# The package without its __init__: that one is for user code, and would look for another wherry.
package = type(sys)("wherry")
package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "wherry")]
sys.modules["wherry"] = package

from wherry.agent.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
'''
_HERE = Path(__file__).parent
_ONLY_HERE = frozenset({"package.py", "shim.py", "call.py", "remote.py", "pool.py"})


def build_zip(extra: Mapping[str, bytes] | None = None) -> bytes:
    """The zip; the same sources give the same bytes. ``extra``: more files, by name."""
    files = {**dict(_sources()), **(extra or {})}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name in sorted(files):
            # A fixed time: the digest names the content.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, files[name])
    return out.getvalue()


def unpack(zipped: bytes, folder: Path) -> Path:
    """
    Unpack to ``folder/DIGEST``, byte-compiled; the path of its ``__main__.py``.

    Again, or by two at once: the same.
    """
    target = folder / hashlib.sha256(zipped).hexdigest()[:16]
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(zipped)) as packed:
            packed.extractall(partial)
        # The folder is named by its content, so nobody need compare times at every start.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(partial, quiet=2, invalidation_mode=mode, stripdir=partial)
        try:
            partial.rename(target)
        except OSError:  # somebody else was faster
            shutil.rmtree(partial)
    return target / "__main__.py"


def _sources() -> Iterator[tuple[str, bytes]]:
    import cloudpickle  # type: ignore[import-untyped]

    yield "__main__.py", _MAIN.encode()
    yield "wherry_call.py", (_HERE / "call.py").read_bytes()
    yield "wherry_rsh.py", (_HERE / "remote.py").read_bytes()
    yield "wherry_pool.py", (_HERE / "pool.py").read_bytes()
    yield "wherry/__init__.py", (_HERE / "shim.py").read_bytes()
    for path in _HERE.glob("*.py"):
        if path.name not in _ONLY_HERE:
            yield f"wherry/agent/{path.name}", path.read_bytes()
    vendored = Path(cloudpickle.__file__).parent
    for path in vendored.glob("*.py"):
        yield f"_vendor/cloudpickle/{path.name}", path.read_bytes()
