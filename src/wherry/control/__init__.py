"""
Use cases and loops: what the control plane does. Called by ``server``; knows the promises of
stores, blobs and back ends, never a concrete one.
"""
