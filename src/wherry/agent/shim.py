"""
``import wherry`` inside a run, where Wherry is not installed: the few functions for user code.

Installed by ``agent.package`` as ``wherry/__init__.py`` in a folder that the agent puts on
``PYTHONPATH``. Where another ``wherry`` is on the path, that one is imported instead.
"""

from __future__ import annotations

import sys
from typing import Any


def _installed() -> Any:
    """The spec of another ``wherry`` that can be imported; None where there is none."""
    import os
    from importlib.machinery import PathFinder

    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = [entry for entry in sys.path if os.path.abspath(entry or ".") != ours]
    spec = PathFinder.find_spec("wherry", path)
    # A folder that merely has this name is none.
    return spec if spec is not None and spec.loader is not None and spec.origin else None


def _become(spec: Any) -> None:
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["wherry"] = module
    spec.loader.exec_module(module)


_spec = _installed()
if _spec is not None:
    _become(_spec)
else:
    from wherry.agent import user as _user
    from wherry.agent.user import (  # noqa: F401
        checkpoint,
        latest_checkpoint,
        params,
        rank,
        report,
        stopping,
        world_size,
    )

    __all__ = list(_user.__all__)

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(_user, name)
        raise AttributeError(
            f"wherry.{name} is not there inside this run, where only {', '.join(__all__)} are; "
            f"add wherry to the run's packages for the rest"
        )
