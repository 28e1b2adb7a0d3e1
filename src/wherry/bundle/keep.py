"""
Put what took time to find out into a cache folder.

Called by ``statcache``, ``interpreter`` and ``locks``.
"""

import contextlib
import os
import time
from pathlib import Path


def keep(file: Path, data: bytes) -> None:
    """Write the file whole, by rename; commands may race. What cannot be written is not kept."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        os.replace(draft, file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
