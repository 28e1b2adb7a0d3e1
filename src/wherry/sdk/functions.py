"""
Functions as jobs: what travels, and what comes back.

Called by ``sdk.submit`` and ``sdk.runs``. A function of a module travels by name, one of
``__main__``, a notebook, a lambda or a closure by value (cloudpickle: for the same minor version of
Python). ``agent.call`` is the other end; the control plane unpickles nothing.
"""

from __future__ import annotations

import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherry.core.bundle import Manifest
from wherry.core.job import Environment
from wherry.errors import InvalidInput, NotPicklable, RunFailed


@dataclass(frozen=True)
class Function:
    """A call to make elsewhere. :raises InvalidInput: where the arguments do not fit it."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    #: whether the ranks serve tasks: see :class:`Served`
    tasks = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidInput(f"{self.function!r} is neither a function nor a script")
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # some built-in functions do not tell
            return
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise InvalidInput(f"{self.name}{signature}: {error}") from None

    @property
    def name(self) -> str:
        """What people call it."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def reference(self) -> str:
        """ "module:qualname" where that is this very function; "" where it must go by value."""
        module = str(getattr(self.function, "__module__", None) or "__main__")
        name = str(getattr(self.function, "__qualname__", ""))
        found: Any = None if module == "__main__" else sys.modules.get(module)
        if found is None or (not getattr(found, "__file__", None) and not _builtin(module)):
            return ""
        for part in name.split("."):
            found = getattr(found, part, None)
        return f"{module}:{name}" if found is self.function else ""

    @property
    def file(self) -> Path | None:
        """The file of its module, where it goes by name and the module is not installed."""
        if not self.reference:
            return None
        file = getattr(sys.modules[self.function.__module__], "__file__", None)
        path = Path(file).resolve() if file else None
        return None if path is None or _installed(path) else path

    def pack(self, root: Path, manifest: Manifest, environment: Environment) -> bytes:
        """
        The payload: a pickle of (function or "module:qualname", args, kwargs).

        :raises NotPicklable: naming the argument. :raises InvalidInput: where it cannot work there.
        """
        if (file := self.file) is not None:
            inside = file.relative_to(root).as_posix() if file.is_relative_to(root) else ""
            if not any(entry.path == inside for entry in manifest.entries):
                raise InvalidInput(
                    f"{self.reference} is in {file}, which does not travel with {root}",
                    hint="keep the module in the project, and not in .gitignore or .wherryignore",
                )
        target = self.reference or self.function
        if not self.reference:
            _check_minor(environment, self.name)
        try:
            return _dumps((target, self.args, dict(self.kwargs)))
        except Exception as error:
            raise self._culprit(error) from None

    def _culprit(self, error: Exception) -> NotPicklable:
        parts: list[tuple[str, Any]] = [(f"the function {self.name}", self.function)]
        parts += [(f"argument {i} of {self.name}", arg) for i, arg in enumerate(self.args, start=1)]
        parts += [(f"argument {key!r} of {self.name}", arg) for key, arg in self.kwargs.items()]
        for what, value in parts:
            try:
                _dumps(value)
            except Exception as reason:
                hint = "make it inside the function, or pass what it can be made from"
                return NotPicklable(f"{what} cannot be pickled: {reason}", hint=hint)
        return NotPicklable(f"the call of {self.name} cannot be pickled: {error}")


def import_path(root: Path, folder: Path) -> list[str]:
    """
    The folders of the project that this process imports from, relative to ``folder``.

    A function's own module may have come from any of them.
    """
    found = []
    for entry in sys.path:
        path = Path(entry or ".").resolve()
        inside = path.is_relative_to(root) and path.is_dir() and not _installed(path)
        if inside and path != folder.resolve():
            found.append(os.path.relpath(path, folder.resolve()))
    return list(dict.fromkeys(found))


def import_folder(file: Path) -> Path:
    """The folder that a module's file was imported from; the file's own where that is unclear."""
    entries = {Path(entry or ".").resolve() for entry in sys.path}
    return next((f for f in reversed(file.parents) if f in entries), file.parent)


class RemoteTraceback(Exception):
    """The traceback of a rank, as the cause of the exception that came from it."""

    def __str__(self) -> str:
        return f"in the run:\n{self.args[0]}"


def load_result(data: bytes) -> Any:
    """
    The value in the pickle that a rank left (``agent.call`` has its form).

    Where it holds an exception, that is raised, with a :class:`RemoteTraceback` as its cause.
    :raises RunFailed: instead, where the exception cannot be unpickled here.
    """
    try:
        found = pickle.loads(data)
    except Exception as error:  # unpickling may raise anything
        raise NotPicklable(
            f"the result cannot be unpickled here: {type(error).__name__}: {error}",
            hint="import what it is made of, or return plain data",
        ) from None
    if found["ok"]:
        return found["value"]
    raise remote_error(found)


def remote_error(found: Mapping[str, Any]) -> BaseException:
    """
    The exception in what ``agent.call.failure`` made, with a :class:`RemoteTraceback` as its cause.

    A ``RunFailed`` instead, where it cannot be unpickled here.
    """
    exception: BaseException = RunFailed(f"{found['type']}: {found['message']}")
    with suppress(Exception):
        loaded = pickle.loads(found["exception"])
        exception = loaded if isinstance(loaded, BaseException) else exception
    exception.__cause__ = RemoteTraceback(found["traceback"])
    return exception


def _builtin(module: str) -> bool:
    return module in sys.builtin_module_names


def _installed(path: Path) -> bool:
    """Whether it belongs to the interpreter's own packages."""
    folders: Iterable[str] = {sys.prefix, sys.base_prefix}
    return "site-packages" in path.parts or any(
        path.is_relative_to(Path(f).resolve() / "lib") for f in folders
    )


def _check_minor(environment: Environment, name: str) -> None:
    ours = "{}.{}".format(*sys.version_info)
    theirs = ".".join(environment.python.split(".")[:2])
    if environment.kind == "built" and theirs != ours:
        raise InvalidInput(
            f"{name} travels by value, from Python {ours}; the run's environment has {theirs}",
            hint=f"put it into a module, or ask for python={ours!r}",
        )


def _dumps(value: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]

    return bytes(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


@dataclass(frozen=True)
class Served(Function):
    """
    Workers that serve tasks: see ``agent.pool``.

    :param function: what each calls first. :param path: folders that it imports from, beside the
        project's. :param title: what people call it.
    """

    path: tuple[str, ...] = ()
    title: str = ""
    tasks = True

    @property
    def name(self) -> str:
        return self.title or super().name

    def pack(self, root: Path, manifest: Manifest, environment: Environment) -> bytes:
        _check_minor(environment, self.name)  # of what comes later nobody knows how it travels
        try:
            call = (None if self.function is nothing else self.function, self.args)
            return pickle.dumps(list(self.path)) + _dumps(call)
        except Exception as error:
            raise self._culprit(error) from None

    @property
    def file(self) -> Path | None:
        return None


def nothing() -> None:
    """What a worker calls first where nobody said."""
