"""Functions as jobs: by name or by value, what cannot travel, and what comes back."""

from __future__ import annotations

import functools
import importlib
import io
import json
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.agent import call
from wherry.core.bundle import Entry, Manifest
from wherry.core.job import Environment
from wherry.errors import InvalidInput, NotPicklable, RunFailed
from wherry.sdk.functions import (
    Function,
    RemoteTraceback,
    Served,
    import_path,
    load_result,
    nothing,
)

LOCK = threading.Lock()
HERE = Environment(kind="active", python=sys.executable)


def here(x: int, *, y: int = 1) -> int:
    return x + y


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("I stay")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a module ``waggle`` in ``src``, importable."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "waggle.py").write_text(
        "def double(x):\n    return 2 * x\n\nclass Model:\n"
        "    @staticmethod\n    def fit(x):\n        return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    yield tmp_path
    sys.modules.pop("waggle", None)


def manifest(*paths: str) -> Manifest:
    return Manifest(entries=tuple(Entry(path=p, digest="0" * 64) for p in paths))


def payload(function: Function, root: Path, *paths: str) -> Any:
    return pickle.loads(function.pack(root, manifest(*paths), HERE))


def local() -> Callable[[], int]:
    n = 41
    return lambda: n + 1


def test_a_function_of_a_module_travels_by_name(project: Path) -> None:
    waggle = importlib.import_module("waggle")
    found = payload(Function(waggle.double, (3,)), project, "src/waggle.py")
    assert found == ("waggle:double", (3,), {})
    found = payload(Function(waggle.Model.fit, (), {"x": 3}), project, "src/waggle.py")
    assert found == ("waggle:Model.fit", (), {"x": 3})


def test_a_function_that_is_installed_travels_by_name(tmp_path: Path) -> None:
    assert payload(Function(json.dumps, ([1],)), tmp_path)[0] == "json:dumps"
    assert payload(Function(len, ([1],)), tmp_path)[0] == "builtins:len"


def test_what_has_no_name_of_its_own_travels_by_value(tmp_path: Path) -> None:
    function, args, kwargs = payload(Function(local()), tmp_path)
    assert function(*args, **kwargs) == 42
    partial = functools.partial(here, 1, y=5)
    assert Function(partial).reference == ""


def test_a_function_of_a_notebook_travels_by_value(tmp_path: Path) -> None:
    main = types.ModuleType("__main__")
    exec("import math\nscale = 2\ndef area(r):\n    return scale * math.pi * r", main.__dict__)
    function = payload(Function(main.__dict__["area"], (1,)), tmp_path)[0]
    assert function(1) == pytest.approx(6.283, abs=1e-3)


def test_a_name_that_was_taken_over_travels_by_value(project: Path) -> None:
    waggle = importlib.import_module("waggle")
    original = waggle.double
    vars(waggle)["double"] = functools.wraps(original)(lambda x: 0)
    assert Function(original, (1,)).reference == ""


def test_a_module_that_does_not_travel_is_told(project: Path) -> None:
    waggle = importlib.import_module("waggle")
    with pytest.raises(InvalidInput, match=r"waggle:double is in .*does not travel"):
        payload(Function(waggle.double, (3,)), project, "other.py")
    with pytest.raises(InvalidInput, match="does not travel"):
        payload(Function(waggle.double, (3,)), project / "elsewhere", "src/waggle.py")


def test_by_value_needs_the_same_minor_version_and_by_name_does_not(tmp_path: Path) -> None:
    other = Environment(kind="built", python="3.9.18")
    with pytest.raises(InvalidInput, match=r"the run's environment has 3\.9"):
        Function(local()).pack(tmp_path, manifest(), other)
    Function(json.dumps, (1,)).pack(tmp_path, manifest(), other)
    same = Environment(kind="built", python="{}.{}.99".format(*sys.version_info))
    Function(local()).pack(tmp_path, manifest(), same)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Function(here, (threading.Lock(),)), "argument 1 of here"),
        (Function(here, (1,), {"y": Unpicklable()}), "argument 'y' of here"),
        (Function(lambda: LOCK), "the function <lambda>"),
    ],
)
def test_what_cannot_be_pickled_is_named(function: Function, name: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    own = Path(__file__).relative_to(root).as_posix()
    with pytest.raises(NotPicklable) as caught:
        function.pack(root, manifest(own), HERE)
    assert caught.value.message.startswith(f"{name} cannot be pickled: ")


def test_arguments_that_do_not_fit_are_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidInput, match=r"here\(.*\).*unexpected keyword argument 'z'"):
        Function(here, (1,), {"z": 2})
    with pytest.raises(InvalidInput, match="missing a required argument: 'x'"):
        Function(here)
    with pytest.raises(InvalidInput, match="neither a function nor a script"):
        Function(3)  # type: ignore[arg-type]


def test_the_folders_that_modules_came_from_go_along(project: Path) -> None:
    assert import_path(project, project) == ["src"]
    assert import_path(project, project / "src") == []


# --- what comes back


def test_a_value_comes_back() -> None:
    assert load_result(pickle.dumps({"ok": True, "value": [1, "ä"]})) == [1, "ä"]


def failed(error: BaseException) -> bytes:
    """What ``agent.call`` leaves of a function that raised this."""

    def function() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        function()
    return bytes(call.dump(call.failure(caught.value)))  # type: ignore[no-untyped-call]


def test_an_exception_comes_back_as_its_own_type_with_the_traceback_of_there() -> None:
    with pytest.raises(KeyError, match="gone") as caught:
        load_result(failed(KeyError("gone")))
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "KeyError: 'gone'" in str(cause) and "Traceback" in str(cause)


@pytest.mark.parametrize("pickled", [None, b"garbage", pickle.dumps(3)])
def test_an_exception_that_cannot_come_back_is_told_with_its_traceback(
    pickled: bytes | None,
) -> None:
    said = {
        "ok": False, "exception": pickled, "type": "Odd", "message": "no", "traceback": "line 7",
    }  # fmt: skip
    with pytest.raises(RunFailed, match="Odd: no") as caught:
        load_result(pickle.dumps(said))
    assert "line 7" in str(caught.value.__cause__)


def test_a_result_that_cannot_be_unpickled_here_is_told() -> None:
    with pytest.raises(NotPicklable, match="no_such_module"):
        load_result(b"cno_such_module\nthing\n.")


def test_workers_of_another_minor_version_are_refused_before_anything_travels() -> None:
    environment = Environment(kind="built", python="3.9.1")
    with pytest.raises(InvalidInput, match=r"has 3\.9") as caught:
        Served(nothing, title="score").pack(Path(), Manifest(entries=()), environment)
    assert "score" in caught.value.message and "python=" in caught.value.hint


def test_what_workers_call_first_and_where_they_import_from_travels_before_any_task() -> None:
    served = Served(print, ("ready",), path=("/a", "/b"), title="score")
    data = io.BytesIO(served.pack(Path(), Manifest(entries=()), Environment()))
    assert pickle.load(data) == ["/a", "/b"]
    assert pickle.load(data) == (print, ("ready",))
    assert served.name == "score"
    nothing_first = io.BytesIO(Served(nothing).pack(Path(), Manifest(entries=()), Environment()))
    pickle.load(nothing_first)
    assert pickle.load(nothing_first) == (None, ())
