"""Rows. ``base`` is the promise, ``sql`` keeps it on SQLite (PostgreSQL: the same code)."""
