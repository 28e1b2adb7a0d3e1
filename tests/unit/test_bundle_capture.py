"""Capturing a project: what travels, what is named instead, and what stops it."""

import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from wherry.agent.protocol import iter_pack
from wherry.bundle import Captured, capture, write_pack
from wherry.bundle.guards import secret_content, secret_name
from wherry.core.bundle import Entry
from wherry.errors import BundleError, ChangedDuringCapture, FileTooLarge, LinkOutOfTree

MODULE = __import__("sys").modules["wherry.bundle.capture"]
LONG_AGO = 1_600_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def age(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files count as old: ctime cannot be set, so the clock goes on instead."""
    now = MODULE.time.time_ns
    monkeypatch.setattr(MODULE.time, "time_ns", lambda: now() + 10 * 10**9)


def paths(captured: Captured) -> list[str]:
    return [e.path for e in captured.manifest.entries]


def left_out(captured: Captured) -> dict[str, str]:
    return {x.path: x.why for x in captured.manifest.left_out}


def test_every_file_is_named_by_its_content(root: Path, cache: Path) -> None:
    (root / "pkg").mkdir()
    (root / "pkg/a.py").write_bytes(b"print()\n")
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    captured = capture(root, cache=cache)
    digest = hashlib.sha256(b"print()\n").hexdigest()
    assert Entry(path="pkg/a.py", digest=digest, size=8) in captured.manifest.entries
    assert captured.path_of(digest) == root / "pkg/a.py"
    assert [e.path for e in captured.manifest.entries if e.executable] == ["run.sh"]
    assert paths(captured) == sorted(paths(captured))


def test_the_same_project_elsewhere_has_the_same_digest(
    root: Path, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for folder in (root, other):
        (folder / "pyproject.toml").write_text("")
        (folder / "train.py").write_text("1")
    first = capture(root, cache=cache).manifest.digest
    assert capture(other, cache=cache).manifest.digest == first
    (other / "train.py").write_text("2")
    assert capture(other, cache=cache).manifest.digest != first


def note_reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on."""
    read: list[str] = []
    real = MODULE._hash

    def noting(file: str) -> object:
        read.append(file)
        return real(file)

    monkeypatch.setattr(MODULE, "_hash", noting)
    return read


def test_an_unchanged_file_is_not_read_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train.py").write_text("1")
    age(root, monkeypatch)
    first = capture(root, cache=cache)
    read = note_reading(monkeypatch)
    assert capture(root, cache=cache).manifest == first.manifest
    assert read == []
    (root / "train.py").write_text("2")
    assert capture(root, cache=cache).manifest != first.manifest
    assert read == [f"{root}/train.py"]


def test_a_file_written_just_now_is_read_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train.py").write_text("1")
    capture(root, cache=cache)
    read = note_reading(monkeypatch)
    capture(root, cache=cache)
    assert f"{root}/train.py" in read


def test_a_broken_cache_is_no_cache(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(root, monkeypatch)
    first = capture(root, cache=cache)
    (file,) = (cache / "stat").iterdir()
    file.write_bytes(b"\xff" + file.read_bytes()[:5])
    assert capture(root, cache=cache).manifest == first.manifest
    blocked = root.parent / "blocked"
    blocked.write_text("a file where a folder should be")
    assert capture(root, cache=blocked).manifest == first.manifest


def test_captures_that_race_agree(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        (root / f"{n}.py").write_text(str(n))
    age(root, monkeypatch)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(capture(root, cache=cache).manifest.digest))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1
    assert len(list((cache / "stat").iterdir())) == 1


SECRETS = [
    *(".env", "sub/.env.local", ".envrc", "deep/er/.env/prod", "key.pem", "a/tls.key", "x.p12"),
    *("id_rsa", "keys/id_ed25519", ".netrc", ".aws/credentials", ".ssh/known_hosts"),
    *(".kube/config", "my-service-account.json", "service_account_prod.json", ".pypirc"),
]


@pytest.mark.parametrize("path", SECRETS)
def test_a_secret_stays_and_is_named(root: Path, cache: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("hush")
    captured = capture(root, cache=cache)
    assert paths(captured) == ["pyproject.toml"]
    assert left_out(captured) == {path: "looks like a secret by its name"}


@pytest.mark.parametrize(
    "path",
    [
        *(".env.example", "environment.py", "src/env.py", "id_rsa.pub", "keys.py", "monkey.py"),
        *("environment.yml", "ssh/config.py", "tokenizer.json", "accounts.json", "pem.py"),
    ],
)
def test_what_only_resembles_a_secret_travels(path: str) -> None:
    assert secret_name(path) == ""


@pytest.mark.parametrize(
    "text",
    [
        "key = 'AKIA" + "QWERTYUIOPASDFGH'",
        "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE\n",
        '{"private_key": "-----BEGIN ' + "PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0B" + '"}',
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2_" * 12,
        "token: hf_" + "aB" * 17,
        "sk-proj-" + "aB3_" * 12,
    ],
)
def test_a_token_in_a_file_keeps_it_here(
    root: Path, cache: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "config.py").write_text(text)
    age(root, monkeypatch)
    for _ in range(2):  # the second time from the cache
        captured = capture(root, cache=cache)
        assert paths(captured) == ["pyproject.toml"]
        assert left_out(captured)["config.py"].startswith("holds what looks like")


def test_words_about_keys_and_binary_files_are_no_secrets() -> None:
    assert secret_content(b'marker = "-----BEGIN PRIVATE KEY-----"  # what we look for') == ""
    assert secret_content(b"AKIAIOSFODNN7EXAMPLE task-based risk-averse") == ""
    assert secret_content(b"\0\0ghp_" + b"a" * 36) == ""


def test_the_person_can_send_a_secret_on_purpose(root: Path, cache: Path) -> None:
    (root / ".env").write_text("X=1")
    (root / ".gitignore").write_text(".env\n")
    (root / ".wherryignore").write_text("!.env\n")
    captured = capture(root, cache=cache)
    assert ".env" in paths(captured) and not captured.manifest.left_out


def test_a_large_file_stops_with_its_name_size_and_a_way_out(root: Path, cache: Path) -> None:
    with (root / "weights.bin").open("wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(FileTooLarge) as caught:
        capture(root, cache=cache)
    assert "weights.bin has 200.0Mi, more than 10.0Mi" in caught.value.message
    assert ".wherryignore" in caught.value.hint and "WHERRY_MAX_FILE=" in caught.value.hint
    captured = capture(root, cache=cache, large="leave-out")
    assert left_out(captured) == {"weights.bin": "large: 200.0Mi, more than 10.0Mi"}
    (root / "weights.bin").write_bytes(b"x" * 20)
    assert capture(root, cache=cache, max_file=20).manifest.size == 20


@pytest.mark.parametrize(
    "target",
    [
        *("/etc/hostname", "../other.py", "sub/../../other.py"),
        *(
            "{root}/pyproject.toml",
            "../project/pyproject.toml",
        ),  # back in, but only on this machine
    ],
)
def test_a_link_out_of_the_tree_is_refused(root: Path, cache: Path, target: str) -> None:
    (root / "sub").mkdir()
    (root / "link").symlink_to(target.format(root=root))
    with pytest.raises(LinkOutOfTree, match="link is a link to"):
        capture(root, cache=cache)
    assert "link" in left_out(capture(root, cache=cache, large="leave-out"))


def test_a_link_that_leaves_by_another_link_is_refused(root: Path, cache: Path) -> None:
    (root / "sub").mkdir()
    (root / "here").symlink_to(".")
    (root / "out").symlink_to("here/../other.py")
    with pytest.raises(LinkOutOfTree, match="out is a link"):
        capture(root, cache=cache)


def test_links_inside_stay_links(root: Path, cache: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub/x.py").write_text("")
    (root / "sub/up").symlink_to("../pyproject.toml")
    (root / "folder").symlink_to("sub")
    entries = {e.path: e.link for e in capture(root, cache=cache).manifest.entries}
    assert entries == {
        "folder": "sub", "pyproject.toml": "", "sub/up": "../pyproject.toml", "sub/x.py": "",
    }  # fmt: skip


def edit_while_reading(root: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an editor write to train.py between its first and its last byte, so many times."""
    left = [times]
    lstat = os.lstat

    class Editor:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def fstat(self, fd: int) -> os.stat_result:
            before = os.fstat(fd)
            if left[0] and os.path.samestat(before, lstat(root / "train.py")):
                left[0] -= 1
                (root / "train.py").write_text(f"edited {left[0]}, longer than it was")
            return before

    monkeypatch.setattr(MODULE, "os", Editor())


def test_a_file_edited_once_during_capture_is_read_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train.py").write_text("1")
    edit_while_reading(root, 1, monkeypatch)
    captured = capture(root, cache=cache)
    digest = hashlib.sha256((root / "train.py").read_bytes()).hexdigest()
    assert captured.path_of(digest) == root / "train.py"


def test_a_file_that_keeps_changing_is_named(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train.py").write_text("1")
    edit_while_reading(root, 4, monkeypatch)
    with pytest.raises(ChangedDuringCapture, match=r"train\.py"):
        capture(root, cache=cache)
    assert "train.py" in left_out(capture(root, cache=cache, large="leave-out"))


def test_an_unreadable_file_is_named(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: str) -> None:
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(MODULE, "_hash", refuse)
    with pytest.raises(BundleError, match=r"pyproject\.toml cannot be read: Permission denied"):
        capture(root, cache=cache)
    left = left_out(capture(root, cache=cache, large="leave-out"))
    assert left == {"pyproject.toml": "cannot be read: Permission denied"}


def test_names_that_cannot_travel_and_odd_files_are_named(root: Path, cache: Path) -> None:
    (root / "back\\slash").write_text("")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.py")).write_text("")
    os.mkfifo(root / "pipe")
    assert left_out(capture(root, cache=cache)) == {
        "back\\slash": "its name holds a backslash",
        "caf\\udce9.py": "its name is not UTF-8",
        "pipe": "not a regular file",
    }


def test_the_script_travels_even_where_it_is_ignored(root: Path, cache: Path) -> None:
    (root / "scratch").mkdir()
    (root / "scratch/x.py").write_text("")
    (root / ".gitignore").write_text("scratch/\n")
    captured = capture(root, cache=cache, script=root / "scratch/x.py")
    assert "scratch/x.py" in paths(captured)


def test_a_home_folder_is_no_project(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root))
    for name in ("scripts/train.py", "scripts/helper.py", "scripts/data.csv", "letters/private"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    captured = capture(root, cache=cache, script=root / "scripts/train.py")
    assert paths(captured) == ["scripts/helper.py", "scripts/train.py"]
    assert "only the script" in left_out(captured)["."]


def unpack(data: bytes) -> dict[str, bytes]:
    return {digest: b"".join(parts) for digest, _, parts in iter_pack(io.BytesIO(data).read)}


def test_a_pack_holds_exactly_what_was_asked_for(root: Path, cache: Path) -> None:
    contents = [b"", b"small", os.urandom(3 * 2**20 + 7)]
    for n, content in enumerate(contents):
        (root / f"{n}.bin").write_bytes(content)
    captured = capture(root, cache=cache)
    digests = [hashlib.sha256(c).hexdigest() for c in contents]
    assert unpack(b"".join(write_pack(captured, digests))) == dict(
        zip(digests, contents, strict=True)
    )
    assert b"".join(write_pack(captured, [])) == b""


@pytest.mark.parametrize("after", [b"other", b"longer than before", b"", None])
@pytest.mark.parametrize("before", [b"small", b"", b"x" * (2**20 + 1)])
def test_a_file_changed_after_capture_is_not_sent_as_what_it_was(
    root: Path, cache: Path, before: bytes, after: bytes | None
) -> None:
    (root / "train.py").write_bytes(before)
    captured = capture(root, cache=cache)
    digest = hashlib.sha256(before).hexdigest()
    (root / "train.py").unlink()
    if after is not None:
        (root / "train.py").write_bytes(after)
    if after == before:
        assert unpack(b"".join(write_pack(captured, [digest]))) == {digest: before}
        return
    with pytest.raises(ChangedDuringCapture, match=r"train\.py"):
        b"".join(write_pack(captured, [digest]))
