"""
The client's side of a bundle: capture a project, settle its environment, pack what must travel.

Called by ``sdk``, never by the control plane. ``capture`` has the code, ``environment`` the Python
and its packages; each imports what it needs when it needs it, because every submit pays for it.
"""

from wherry.bundle.capture import Captured, capture, unrecorded, write_pack
from wherry.bundle.walk import find_root

__all__ = ["Captured", "capture", "find_root", "unrecorded", "write_pack"]
