"""Shipped contract suites and failing fakes, for whoever writes a back end or a store."""
