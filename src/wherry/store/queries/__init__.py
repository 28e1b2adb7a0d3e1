"""
The statements, by what they are about. Called by ``store.sql`` within a transaction.

Every function takes a connection and commits nothing.
"""
