"""The version: read by the build and by ``wherry --version``, which must not import more."""

__version__ = "0.1.0"
