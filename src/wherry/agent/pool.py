"""
A worker of ``wherry.map``: ``python wherry_pool.py CONFIG PAYLOAD`` with the run's Python.

Started by ``agent.prepare``; ``agent.package`` puts it beside the agent. ``agent.tasks`` has what
it says. It imports nothing of Wherry under that name, so that user code finds the ``wherry`` that
it would find in a script: it loads the agent's files by their paths.

PAYLOAD holds two pickles: the list of folders to import from as well, and ``(initializer or None,
args)``. The tasks run in the main thread; one thread fetches the next chunk meanwhile, another
sends outcomes.

A chunk is a pickle of a dictionary::

    key, function    a parcel, and what names its content
    mode             how an item becomes a call: one of MODES
    items            a parcel of a list
    timeout          seconds of one task, or None

An answer is a pickle of ``(seconds, parcel)`` of a list of ``(place in the chunk, True, values of
tasks in a row)`` and ``(place, False, what agent.call.failure makes of an exception)``. A place of
-1 stands for a chunk that could not be read.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
#: How a task's item becomes a call.
MODES = {
    "item": lambda function, item: function(item),
    "args": lambda function, item: function(*item),
    "call": lambda function, item: function(*item[0], **item[1]),
    "self": lambda function, item: item(),
}

FLUSH = 0.1  # seconds after which what is done is sent, though the chunk goes on
LONG = 0.5  # seconds after which what has not begun is given back
_DEPTH = 2  # chunks at hand: one at work, one next
_WAIT = 20.0  # seconds of one long poll
_SEND = 4 << 20  # bytes of one request, about
_FUNCTIONS = 64  # functions kept ready
_LEAVE = 10.0  # seconds for the last outcomes to arrive
_STUCK = 5.0  # seconds after its time is over that a task may go on


def _load(name, *path):
    """A module of the agent, under a name of its own."""
    spec: Any = importlib.util.spec_from_file_location(name, os.path.join(_HERE, *path))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TimeIsUp(BaseException):
    """Raised in a task whose time is over. No Exception: tasks catch those."""


class Worker:
    """One rank. ``calls``, ``parcels``, ``tasks``, ``call``: the agent's modules."""

    def __init__(self, config, modules):
        self.calls, self.parcels, self.tasks, self.call = modules
        self.config = config
        self.changed = threading.Condition()
        self.queue: Any = collections.deque()  # (number, data) not begun
        self.have = []  # numbers, in order, until their result was taken
        self.running = None  # the number of the chunk at work
        self.since = 0.0
        self.out: Any = collections.deque()  # frames to send
        self.ended = False
        self.stopped = threading.Event()  # never set: workers are killed
        self.functions = collections.OrderedDict()
        self.blobs = self.calls.Control(config)
        shared = os.path.join(config["shared_dir"], "blobs")
        self.cache = self.parcels.Cache(shared, self.download)
        self.watching = False
        self.watched = None  # (deadline, chunk, error) of a task whose time is limited

    # --- talking
    def guarded(self, loop):
        try:
            loop()
        except self.calls.Replaced:
            os._exit(1)  # the agent is told the same
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def fetch(self):
        """Keep the queue filled."""
        control = self.calls.Control(self.config)
        while True:
            with self.changed:
                while not self.ended and len(self.have) >= _DEPTH and not self.overdue():
                    self.changed.wait(0.2)
                if self.ended:
                    return
                slow = self.overdue()
                if slow:  # whoever is free does them sooner
                    for number, _ in self.queue:
                        self.have.remove(number)
                    self.queue.clear()
                have = list(self.have)
            want = 0 if slow else _DEPTH - len(have)
            self.ask(control, have, want)
            if slow:
                with self.changed:
                    while self.overdue(begun=True):
                        self.changed.wait(1.0)

    def overdue(self, begun=False):
        """Whether the chunk at work takes long while others wait behind it."""
        long = self.running is not None and time.monotonic() - self.since > LONG
        return long and bool(self.queue or begun)

    def ask(self, control, have, want):
        wait = _WAIT if want else 0
        path = f"/tasks/next?want={want}&wait={wait}"

        def once():
            with control.stream("POST", path, self.tasks.pack_numbers(have)) as read:
                return read()

        answer = self.calls.persist(once, self.stopped)
        with self.changed:
            for kind, number, payload in self.tasks.iter_frames(answer):
                if kind == self.tasks.END:
                    self.ended = True
                elif kind == self.tasks.CHUNK:
                    self.have.append(number)
                    self.queue.append((number, payload))
            self.changed.notify_all()

    def send(self):
        """Send what is done."""
        control = self.calls.Control(self.config)
        while True:
            with self.changed:
                while not self.out:
                    self.changed.wait()
                frames, size = [], 0
                while self.out and size < _SEND:
                    frames.append(self.out.popleft())
                    size += len(frames[-1][2])
            self.post(control, b"".join(self.tasks.frame(*frame) for frame in frames))
            with self.changed:
                for kind, number, _ in frames:
                    if kind == self.tasks.RESULT:
                        self.have.remove(number)
                self.changed.notify_all()

    def post(self, control, body):
        self.calls.persist(lambda: control.call("POST", "/tasks", body), self.stopped)

    def download(self, digest, write):
        with self.blobs.stream("GET", f"/blobs/{digest}") as read:
            for piece in iter(lambda: read(1 << 20), b""):
                write(piece)

    def blob(self, digest):
        return self.calls.persist(lambda: self.cache.fetch(digest), self.stopped)

    def keep(self, source):
        """Store a blob of a result."""
        path = f"/blobs/{source.digest}"
        self.calls.persist(
            lambda: self.blobs.call("PUT", path, source.pieces(), size=source.size), self.stopped
        )

    # --- working
    def work(self):
        """Chunk after chunk, until there are no more."""
        while True:
            with self.changed:
                while not self.queue and not self.ended:
                    self.changed.wait()
                if not self.queue:
                    self.changed.wait_for(lambda: not self.have, _LEAVE)
                    return
                number, data = self.queue.popleft()
                self.running, self.since = number, time.monotonic()
            self.do(number, data)
            with self.changed:
                self.running = None
                self.changed.notify_all()

    def do(self, number, data):
        began = flushed = time.monotonic()
        try:
            chunk = pickle.loads(data[1:])
            function = self.function(chunk)
            items = self.parcels.unpack(chunk["items"], self.blob)
            apply = MODES[chunk["mode"]]
        except BaseException as error:
            return self.say(number, began, [(-1, False, self.failure(error))], last=True)
        if chunk["timeout"] is not None:
            apply = self.timed(number, chunk["timeout"], apply)
        values: Any = []
        done = [(0, True, values)]
        last = len(items) - 1
        for place, item in enumerate(items):
            try:
                values.append(apply(function, item))
            except BaseException as error:
                values = []
                done += [(place, False, self.failure(error)), (place + 1, True, values)]
            items[place] = item = None  # so that its memory can go
            now = time.monotonic()
            if now - flushed > FLUSH and place < last:
                if now - began > LONG:
                    break  # what is left is done sooner elsewhere
                self.say(number, flushed, done)
                values = []
                done, flushed = [(place + 1, True, values)], now
        return self.say(number, flushed, done, last=True)

    def function(self, chunk):
        key = chunk["key"]
        if key in self.functions:
            self.functions.move_to_end(key)
            return self.functions[key]
        function = self.parcels.unpack(chunk["function"], self.blob)
        self.functions[key] = function
        if len(self.functions) > _FUNCTIONS:
            self.functions.popitem(last=False)
        return function

    def say(self, number, began, done, last=False):
        """Queue what is done; what cannot be pickled is an error of its own task."""
        seconds = time.monotonic() - began
        done = [entry for entry in done if entry[2]]
        try:
            parcel = self.pack(done)
        except Exception:
            parcel = self.pack([one for entry in done for one in self.checked(*entry)])
        kind = self.tasks.RESULT if last else self.tasks.PART
        payload = pickle.dumps((seconds, parcel), self.parcels.PROTOCOL)
        with self.changed:
            self.out.append((kind, number, payload))
            self.changed.notify_all()

    def pack(self, done):
        return self.parcels.pack(done, self.keep, beside=False, folder=self.config["dir"])

    def checked(self, place, ok, values):
        if not ok:
            yield place, ok, values
            return
        for at, value in enumerate(values, start=place):
            try:
                self.pack(value)
            except Exception as error:
                kind = type(value).__qualname__
                words = f"the function returned a {kind}, which cannot be pickled: {error}"
                yield at, False, self.failure(TypeError(words))
            else:
                yield at, True, [value]

    def failure(self, error):
        """What is told of an exception; its traceback begins in the user's code."""
        if isinstance(error, TimeIsUp):
            error = TimeoutError(str(error)).with_traceback(error.__traceback__)
        elif not isinstance(error, Exception):  # it must not end the driver
            words = f"{type(error).__name__}({error})"
            error = RuntimeError(words).with_traceback(error.__traceback__)
        trace = error.__traceback__
        while trace and trace.tb_next and trace.tb_next.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        return self.call.failure(error.with_traceback(trace))

    # --- tasks whose time is limited
    def timed(self, number, seconds, apply):
        """``apply`` within so many seconds, by an alarm; in code that hears none, by our death."""
        words = f"the task took longer than {seconds:g} s"

        def ring(*_):
            raise TimeIsUp(words)

        def limited(function, item):
            self.watched = (time.monotonic() + seconds + _STUCK, number, words)
            before = signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                return apply(function, item)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
                self.watched = None

        if not self.watching:
            self.watching = True
            self.start(self.watch, "watch")
        return limited

    def watch(self):
        while True:
            time.sleep(0.5)
            watched = self.watched
            if watched and time.monotonic() > watched[0]:
                sys.stderr.write(watched[2] + ", and heard no alarm: this worker ends\n")
                os._exit(70)

    def start(self, loop, name):
        """A thread that ends with the process."""
        thread = threading.Thread(target=self.guarded, args=(loop,), name=name, daemon=True)
        thread.start()


def prepare(payload):
    """Call the initializer, after the folders that it may be imported from are there."""
    with open(payload, "rb") as file:
        path = pickle.load(file)
        sys.path.extend(p for p in path if p not in sys.path)
        initializer, args = pickle.load(file)
    if initializer is not None:
        initializer(*args)


def main(config, payload):
    """Serve until the driver says that there is no more; the status to exit with."""
    with open(config, "rb") as file:
        told = json.load(file)
    modules = (
        _load("_wherry_calls", "wherry", "agent", "calls.py"),
        _load("_wherry_parcels", "wherry", "agent", "parcels.py"),
        _load("_wherry_tasks", "wherry", "agent", "tasks.py"),
        _load("_wherry_call", "wherry_call.py"),
    )
    worker = Worker(told, modules)
    worker.start(worker.send, "send")
    try:
        prepare(payload)
    except BaseException as error:
        worker.have.append(0)
        worker.say(0, time.monotonic(), [(0, False, worker.failure(error))], last=True)
        worker.queue, worker.ended = [], True
        worker.work()  # until that is told
        raise
    worker.start(worker.fetch, "fetch")
    worker.work()
    return 0


if __name__ == "__main__":
    # As for a script in the working folder; the agent's cloudpickle only where there is no other.
    sys.path[0] = os.getcwd()
    sys.path.append(os.path.join(_HERE, "_vendor"))
    arguments = sys.argv[1:]
    sys.argv[1:] = []
    sys.exit(main(*arguments))
