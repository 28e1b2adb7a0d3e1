"""
Finds a back end's class by its name, and imports it only then.

Called by ``server.app``, which knows the arguments that each class takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wherry.errors import NotFound, did_you_mean

#: name → "module:Class"
BACKENDS: dict[str, str] = {
    "local": "wherry.backends.local.backend:LocalBackend",
}


def find(name: str) -> type[Any]:
    """The class of the back end called ``name``. :raises NotFound: where there is none."""
    try:
        module, _, attribute = BACKENDS[name].partition(":")
    except KeyError:
        raise NotFound(
            f"there is no back end called {name!r}", hint=did_you_mean(name, BACKENDS)
        ) from None
    found: type[Any] = getattr(import_module(module), attribute)
    return found
