"""Building environments: once, shared, read-only, whole or not at all."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.package_index import make_index, pin, served
from wherry.agent import environment
from wherry.agent.environment import Built, build, prune
from wherry.agent.uv import EnvironmentFailed, explain, find_python, uv_environ
from wherry.bundle.environment import uv_path

VERSION = "{}.{}.{}".format(*sys.version_info)
UV = uv_path()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    make_index(folder)
    return folder


@pytest.fixture(autouse=True)
def only_this_index(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"file://{index}/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")


class Asked:
    """A build and what it told people."""

    def __init__(self, cache: Path, text: str, *, python: str = VERSION, uv: str = UV) -> None:
        self.cache, self.uv, self.notes = cache, uv, list[str]()
        blob = text.encode()
        digest = hashlib.sha256(blob).hexdigest()
        self.blobs = {digest: blob}
        requirements = digest if text else ""
        self.ask: Mapping[str, str] = {
            "kind": "built", "python": python, "requirements": requirements,
        }  # fmt: skip

    def build(self) -> Built:
        return build(
            self.ask,
            cache=str(self.cache),
            uv=self.uv,
            fetch=self.blobs.__getitem__,
            note=self.notes.append,
        )


def run(built: Built, code: str) -> str:
    done = subprocess.run([built.python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_packages_are_there_and_the_second_run_shares_them(index: Path, tmp_path: Path) -> None:
    asked = Asked(tmp_path, pin(index, "alpha", "1.0") + pin(index, "gamma", "1.0"))
    first = asked.build()
    assert run(first, "import alpha, gamma; print(alpha.version)") == "1.0"
    assert run(first, "import sys; print(sys.prefix)") == first.root
    assert first.bin == os.path.join(first.root, "bin") and not first.reused
    assert "2 packages" in asked.notes[0]
    asked.notes.clear()
    asked.uv = "/nonexistent"  # the second time, uv is not even asked
    assert asked.build() == first._replace(reused=True) and asked.notes == []


def test_other_packages_and_no_packages_are_other_environments(index: Path, tmp_path: Path) -> None:
    texts = ("", pin(index, "alpha", "1.0"), pin(index, "alpha", "2.0"))
    roots = {Asked(tmp_path, text).build().root for text in texts}
    assert len(roots) == 3


def test_files_are_read_only(index: Path, tmp_path: Path) -> None:
    built = Asked(tmp_path, pin(index, "alpha", "1.0")).build()
    (module,) = Path(built.root).glob("lib/python*/site-packages/alpha.py")
    assert module.stat().st_mode & 0o222 == 0


def counting_uv(folder: Path) -> tuple[str, Path]:
    """A uv that notes how it was called."""
    log = folder / "calls"
    script = folder / "uv"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {UV} "$@"\n')
    script.chmod(0o755)
    return str(script), log


def test_builders_that_race_build_once_and_the_other_says_that_it_waits(
    index: Path, tmp_path: Path
) -> None:
    uv, log = counting_uv(tmp_path)
    text = pin(index, "alpha", "1.0")
    builders = [Asked(tmp_path / "cache", text, uv=uv) for _ in range(4)]
    found: list[Built] = []
    threads = [threading.Thread(target=lambda b=b: found.append(b.build())) for b in builders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text().count("venv ") == 1
    assert sorted(b.reused for b in found) == [False, True, True, True]
    assert sum("waiting" in note for b in builders for note in b.notes) == 3


def test_what_a_crash_left_half_built_is_built_again(index: Path, tmp_path: Path) -> None:
    asked = Asked(tmp_path, pin(index, "alpha", "1.0"))
    built = asked.build()
    root = Path(built.root)
    (root / environment.COMPLETE).unlink()
    for module in root.glob("lib/python*/site-packages/alpha.py"):
        module.unlink()
    assert not asked.build().reused
    assert run(built, "import alpha; print(alpha.version)") == "1.0"


def test_an_environment_whose_interpreter_is_gone_is_built_again(
    index: Path, tmp_path: Path
) -> None:
    asked = Asked(tmp_path, pin(index, "alpha", "1.0"))
    python = Path(asked.build().python)
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert not asked.build().reused


def nothing_left(cache: Path) -> bool:
    return [p for p in (cache / "envs").iterdir() if p.is_dir()] == []


def test_a_package_that_is_not_what_was_locked_is_refused(index: Path, tmp_path: Path) -> None:
    asked = Asked(tmp_path, "alpha==1.0 --hash=sha256:" + "0" * 64)
    with pytest.raises(EnvironmentFailed, match="not the file that was locked") as caught:
        asked.build()
    assert "sha256:0000" in caught.value.tail
    assert nothing_left(tmp_path)


def test_a_package_without_a_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="hash"):
        Asked(tmp_path, "alpha==1.0\n").build()


def test_a_package_that_the_index_does_not_have_is_named(tmp_path: Path) -> None:
    asked = Asked(tmp_path, "no-such-thing==1.0 --hash=sha256:" + "0" * 64)
    with pytest.raises(EnvironmentFailed, match="no package named no-such-thing") as caught:
        asked.build()
    assert caught.value.hint and caught.value.tail


def test_an_index_that_cannot_be_reached_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentFailed, match="index cannot be reached"):
        Asked(tmp_path, "alpha==1.0 --hash=sha256:" + "0" * 64).build()


def test_what_uvs_cache_has_needs_no_index(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pin(index, "alpha", "1.0")
    with served(index) as url:
        monkeypatch.setenv("UV_DEFAULT_INDEX", url)
        Asked(tmp_path / "first", text).build()
    uv, log = counting_uv(tmp_path)
    built = Asked(tmp_path / "second", text, uv=uv).build()
    assert [("--offline" in call) for call in log.read_text().splitlines()] == [False, True]
    assert not built.reused and run(built, "import alpha; print(alpha.version)") == "1.0"


def test_a_folder_of_wheels_of_another_machine_is_passed_over(index: Path, tmp_path: Path) -> None:
    text = "--find-links /no/such/folder\n" + pin(index, "alpha", "1.0")
    assert run(Asked(tmp_path, text).build(), "import alpha; print(alpha.version)") == "1.0"


def test_a_python_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"no Python 3\.99\.0") as caught:
        Asked(tmp_path, "", python="3.99.0").build()
    assert "--python" in caught.value.hint
    assert nothing_left(tmp_path)


def test_another_patch_of_the_same_python_stands_in_and_is_said(tmp_path: Path) -> None:
    minor = VERSION.rpartition(".")[0]
    asked = Asked(tmp_path, "", python=f"{minor}.99")
    version = run(asked.build(), "import platform; print(platform.python_version())")
    assert version.startswith(minor)
    assert any(f"using {version}" in note for note in asked.notes)


def test_without_uv_there_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailed, match="uv is not on this machine"):
        Asked(tmp_path, "", uv="").build()


def test_an_active_interpreter_is_used_where_it_is(tmp_path: Path) -> None:
    def active(python: str) -> Built:
        ask = {"kind": "active", "python": python}
        return build(ask, cache=str(tmp_path), uv="", fetch=lambda d: b"", note=print)

    built = active(sys.executable)
    assert built.python == sys.executable and built.bin == os.path.dirname(sys.executable)
    assert built.root == (sys.prefix if sys.prefix != sys.base_prefix else "")
    with pytest.raises(EnvironmentFailed, match="/gone/python is not there"):
        active("/gone/python")


def test_prune_removes_what_nobody_used_and_nothing_else(index: Path, tmp_path: Path) -> None:
    old, new, busy = (Asked(tmp_path, pin(index, *p)).build().root for p in (
        ("alpha", "1.0"), ("alpha", "2.0"), ("gamma", "1.0"),
    ))  # fmt: skip
    for root in (old, busy):
        long_ago = time.time() - 40 * 86400
        os.utime(os.path.join(root, environment.USED), (long_ago, long_ago))
    with environment._locked(busy + ".lock", print):
        count, freed = prune(str(tmp_path), 30)
    assert count == 1 and freed > 0
    assert [os.path.exists(r) for r in (old, new, busy)] == [False, True, True]
    assert prune(str(tmp_path / "nowhere"), 30) == (0, 0)


def test_it_runs_on_the_oldest_python_that_an_image_may_have(index: Path, tmp_path: Path) -> None:
    python = find_python("3.9", UV)
    assert python, "this test needs a Python 3.9: uv python install 3.9"
    code = """
        import platform, sys
        sys.path.insert(0, sys.argv[1])
        from wherry.agent.environment import build
        ask = {"kind": "built", "python": platform.python_version(), "requirements": "x"}
        text = sys.argv[3].encode()
        print(build(ask, cache=sys.argv[2], uv=sys.argv[4], fetch=lambda d: text, note=str).python)
    """
    package = tmp_path / "agent-only" / "wherry"
    source = Path(environment.__file__).parent
    shutil.copytree(source, package / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    words = [str(package.parent), str(tmp_path / "cache"), pin(index, "beta", "1.0"), UV]
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code), *words], capture_output=True, text=True, check=True
    )
    built = done.stdout.strip()
    found = subprocess.check_output([built, "-c", "import beta, sys; print(*sys.version_info[:2])"])
    assert found.split() == [b"3", b"9"]


def test_pips_settings_hold_where_uv_has_none(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://file/simple\ncert = /file.pem\n"
        "[install]\nextra-index-url =\n  http://one\n  http://two\n"
    )
    env = uv_environ({"PIP_CONFIG_FILE": str(config), "PIP_INDEX_URL": "http://variable/simple"})
    assert env["UV_DEFAULT_INDEX"] == "http://variable/simple"
    assert env["UV_INDEX"] == "http://one http://two"
    assert env["SSL_CERT_FILE"] == "/file.pem"
    own = {
        "PIP_CONFIG_FILE": str(config),
        "UV_INDEX_URL": "u",
        "UV_INDEX": "i",
        "SSL_CERT_FILE": "",
    }
    env = uv_environ(own)
    assert "UV_DEFAULT_INDEX" not in env and env["UV_INDEX"] == "i"
    links = uv_environ({"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "/a /b"})
    assert links["UV_FIND_LINKS"] == "/a,/b"


def test_what_belongs_to_other_projects_does_not_reach_uv() -> None:
    foreign = {
        "VIRTUAL_ENV": "/x",
        "PYTHONPATH": "/y",
        "UV_COMPILE_BYTECODE": "1",
        "UV_PYTHON": "z",
    }
    assert uv_environ({**foreign, "PIP_CONFIG_FILE": os.devnull}).keys() == {"PIP_CONFIG_FILE"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "  ╰─▶ Because nosuch was not found in the package\n      registry and you require",
            "there is no package named nosuch on the index",
        ),
        (
            "error: No solution\n  cause: Because there is no version of six==99 and you require",
            "no version of six==99 fits",
        ),
        (
            "cause: Because librt{os_name != 'nt'}==0.16.0 has no wheels with a matching Python",
            "librt 0.16.0 has no wheel for this Python or platform",
        ),
        ("error: failed\n  cause: No space left on device (os error 28)", "no space is left"),
        ("error: Invalid version request: 3.1.2.3", "3.1.2.3"),
        (
            "error: No interpreter found for Python 3.1 in x",
            "there is no Python 3.1 on this machine",
        ),
        ("error: something new\n  cause: the moon\n", "uv: the moon"),
        ("", "uv: it failed without a word"),
    ],
)
def test_what_uv_says_becomes_words(said: str, message: str) -> None:
    assert explain(said)[0].startswith(message)
