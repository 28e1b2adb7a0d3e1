"""Runs on this machine: one detached agent a rank, found again by the lock that it holds."""
