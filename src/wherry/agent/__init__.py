"""
The agent: beside the user's process, everywhere.

Standard library only, Python 3.9 to 3.13; it imports nothing of Wherry outside this folder. The
control plane serves this folder as one zip named by its digest (``control.agent_zip``).
"""
