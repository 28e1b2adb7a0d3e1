"""Where runs run. ``base`` is the promise, ``registry`` finds one by name, the folders keep it."""
