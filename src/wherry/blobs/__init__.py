"""Content-addressed bytes. ``base`` is the promise; ``objects`` keeps it over obstore."""
