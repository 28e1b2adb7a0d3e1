"""The routes, one file a caller or noun. Thin: a route decodes, calls ``control``, encodes."""
