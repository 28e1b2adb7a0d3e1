"""The command line: a thin client of ``sdk``. ``main`` is the entry; one file a noun or verb."""
