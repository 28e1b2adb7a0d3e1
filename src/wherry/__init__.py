"""Wherry: build once, run everywhere."""

from wherry._version import __version__

__all__ = ["__version__"]
