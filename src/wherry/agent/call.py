"""
Run a function instead of a script: ``python wherry_call.py PAYLOAD RESULT`` with the run's Python.

Started by ``agent.prepare``; ``agent.package`` puts it beside the agent. It imports nothing of
Wherry, so that user code finds the ``wherry`` it would find in a script.

PAYLOAD holds a pickle of ``(function or "module:qualname", args, kwargs)``. Every rank calls it;
rank 0's value, and every rank's exception, is written to RESULT and announced in the report file.
RESULT holds a pickle of a dictionary::

    {"ok": True,  "value": ...}
    {"ok": False, "exception": BYTES or None, "type": "ValueError", "message": "no",
     "traceback": "Traceback (most recent call last): ..."}

``exception`` is itself a pickle, so that one whose class cannot be imported at the other end does
not take the traceback with it; None where it cannot be pickled. The process exits 1 after an
exception, and with the status of a ``SystemExit``.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import traceback

_PROTOCOL = 5  # Python 3.8 and later


def load(payload):
    """(function, args, kwargs) from the payload's path."""
    with open(payload, "rb") as file:
        target, args, kwargs = pickle.load(file)
    if isinstance(target, str):
        name, _, qualname = target.partition(":")
        target = importlib.import_module(name)
        for part in qualname.split("."):
            target = getattr(target, part)
    return target, args, kwargs


def dump(value):
    """The pickle of a value; by value what the other end cannot import."""
    try:
        data = pickle.dumps(value, _PROTOCOL)
        # What lives in this process's __main__ is somebody else's __main__ at the other end.
        if b"__main__" not in data:
            return data
    except Exception:
        pass
    import cloudpickle  # type: ignore[import-untyped]

    return cloudpickle.dumps(value, _PROTOCOL)


def failure(error):
    """The dictionary of an exception."""
    # The first entry is this file's own call.
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    lines = traceback.format_exception(type(error), error, trace)
    try:
        pickled = dump(error)
        pickle.loads(pickled)
    except Exception:
        pickled = None
    return {
        "ok": False,
        "exception": pickled,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(lines),
    }


def announce(path, data, **also):
    """Write the result whole, then say where it is."""
    with open(path + ".partial", "wb") as file:
        file.write(data)
    os.replace(path + ".partial", path)
    line = json.dumps({"r": path, **also}).encode() + b"\n"
    fd = os.open(os.environ["WHERRY_REPORT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line)
    os.close(fd)


def main(payload, result):
    """Call it; the status to exit with."""
    try:
        # A module that submits when it is imported would do so in every rank, without end.
        os.environ["WHERRY_IMPORTING"] = "1"
        function, args, kwargs = load(payload)
        os.environ.pop("WHERRY_IMPORTING", None)
        value = function(*args, **kwargs)
        if os.environ.get("WHERRY_RANK", "0") == "0":
            try:
                data = dump({"ok": True, "value": value})
            except Exception as error:
                kind = type(value).__qualname__
                raise TypeError(
                    f"the function returned a {kind}, which cannot be pickled: {error}"
                ) from None
            announce(result, data)
    except SystemExit:
        raise
    except BaseException as error:
        said = failure(error)
        sys.stderr.write(said["traceback"])
        words = f"{said['type']}: {said['message']}" if said["message"] else said["type"]
        announce(result, dump(said), e=words[:2000])
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    # As for a script in the working folder; the agent's cloudpickle only where there is no other.
    sys.path[0] = os.getcwd()
    sys.path.append(os.path.join(here, "_vendor"))
    arguments = sys.argv[1:]
    sys.argv[1:] = []
    sys.exit(main(*arguments))
