"""The Python client: thin functions over HTTP. The command line stands on it."""
