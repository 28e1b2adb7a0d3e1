"""
The control plane's process: HTTP over the use cases of ``control``.

``app`` is the composition root, ``auth`` stands before every route, ``__main__`` starts it.
"""
