"""From words to a JobSpec: what is run, from which folder, with which code and environment."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.fake_plane import Answer, FakePlane, Seen, json, serving
from wherry.agent.protocol import iter_pack
from wherry.core.api import Digests, RunDetail, Submit
from wherry.core.bundle import Manifest
from wherry.core.job import Code, JobSpec
from wherry.core.run import Run
from wherry.errors import (
    BundleMissing,
    ChangedDuringCapture,
    FileTooLarge,
    InvalidSpec,
    ScriptNotFound,
    UnknownKey,
)
from wherry.sdk.submit import Draft, from_run, prepare, push, send
from wherry.sdk.target import find_target


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, the current folder; its environment is the active one."""
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    write(folder, "pyproject.toml", "")
    write(folder, "train.py", "print('training')")
    write(folder, "jobs/predict.py", "print('predicting')")
    write(folder, "pkg/__main__.py", "")
    write(folder, "notes", "print('a script without a name')")
    write(folder, "go.sh", "#!/bin/sh\necho go").chmod(0o755)
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def draft(*words: str, **more: Any) -> Draft:
    more.setdefault("environment", "active")
    return Draft(words=words, **more)


def spec(*words: str, **more: Any) -> JobSpec:
    return prepare(draft(*words, **more)).spec


# --- what the words mean


@pytest.mark.parametrize(
    ("words", "command", "name"),
    [
        ("train.py --epochs 3", "python train.py --epochs 3", "train"),
        ("jobs/predict.py", "python jobs/predict.py", "predict"),
        ("./train.py", "python ./train.py", "train"),
        ("python train.py -x", "python train.py -x", "train"),
        ("python3 -m pkg a", "python -m pkg a", "pkg"),
        ("python -c pass", "python -c pass", "python"),
        ("-m pkg.sub --lr 1", "python -m pkg.sub --lr 1", "sub"),
        ("pkg x", "python pkg x", "pkg"),
        ("notes", "python notes", "notes"),
        ("go.sh now", "./go.sh now", "go"),
        ("echo hello", "echo hello", "echo"),
        ("torchrun train.py", "torchrun train.py", "torchrun"),
    ],
)
def test_words_mean_a_script_a_module_or_a_command(
    words: str, command: str, name: str, project: Path
) -> None:
    target = find_target(tuple(words.split()), project)
    assert (" ".join(target.command), target.name) == (command, name)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("trian.py", "train.py"),
        ("train", "train.py"),
        ("predict.py", "jobs/predict.py"),
        ("job/predict.py", "jobs/predict.py"),
        ("python trian.py", "train.py"),
        ("./train", "train.py"),
    ],
)
def test_a_missing_script_is_told_with_the_nearest_file(
    word: str, meant: str, project: Path
) -> None:
    with pytest.raises(ScriptNotFound) as caught:
        find_target(tuple(word.split()), project)
    assert caught.value.hint == f"did you mean {meant!r}?"
    assert str(project) in caught.value.message


def test_a_module_has_to_be_named(project: Path) -> None:
    with pytest.raises(InvalidSpec, match="-m needs"):
        find_target(("-m",), project)


# --- job files


def test_a_job_file_is_read_and_more_words_are_added_to_its_command(project: Path) -> None:
    write(project, "job.yaml", "command: python train.py --epochs 3\nworkers: 2\nparams: {lr: 1}")
    made = spec("job.yaml", "--lr", "2", changes={"workers": 4, "params": {"x": "y"}})
    assert made.command == ("python", "train.py", "--epochs", "3", "--lr", "2")
    assert (made.workers, made.params, made.name) == (4, {"lr": 1, "x": "y"}, "job")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("command: python gone.py", ScriptNotFound, "gone.py"),
        ("workers: 2", InvalidSpec, "job.yaml: the job has no command"),
        ("command: python train.py\nworkrs: 2", UnknownKey, "job.yaml: there is no key 'workrs'"),
        ("command: job.yaml", InvalidSpec, "job file again"),
    ],
)
def test_a_wrong_job_file_is_told_by_its_name(
    text: str, error: type[Exception], words: str, project: Path
) -> None:
    write(project, "job.yaml", text)
    with pytest.raises(error, match=words):
        prepare(draft("job.yaml"))


def test_a_job_file_that_refers_to_itself_ends(project: Path) -> None:
    write(project, "a.yaml", "command: b.yaml")
    write(project, "b.yaml", "command: a.yaml")
    with pytest.raises(InvalidSpec, match="job file again"):
        prepare(draft("a.yaml"))


# --- the spec


def test_a_run_elsewhere_works_in_a_copy_of_the_project(project: Path) -> None:
    prepared = prepare(draft("train.py"))
    made = prepared.spec
    assert prepared.captured is not None
    assert made.code == Code(bundle=prepared.captured.manifest.digest, workdir=".")
    assert {e.path for e in prepared.captured.manifest.entries} >= {"train.py", "jobs/predict.py"}


def test_a_foreground_run_works_in_the_folder_itself(project: Path) -> None:
    assert spec("train.py", foreground=True).code.in_place == str(project.resolve())
    assert spec("train.py", foreground=True, in_place=False).code.in_place == ""


def test_it_works_where_the_person_stands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "jobs")
    made = spec("predict.py")
    assert (made.code.workdir, made.command) == ("jobs", ("python", "predict.py"))
    assert spec("../train.py").command == ("python", "../train.py")


def test_a_script_outside_of_the_project_brings_its_own(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "pyproject.toml", "")
    path = write(tmp_path / "other", "sub/tool.py", "")
    prepared = prepare(draft(str(path), "-x"))
    made = prepared.spec
    assert (made.command, made.code.workdir) == (("python", "tool.py", "-x"), "sub")
    assert prepared.captured is not None and prepared.captured.root == tmp_path / "other"
    in_place = spec(str(path), "-x", foreground=True)
    assert in_place.command == ("python", str(path), "-x")
    assert in_place.code.in_place == str(project.resolve())


def test_changes_are_in_the_form_of_a_job_file_and_as_strict(project: Path) -> None:
    made = spec("train.py", changes={"timeout": "2h", "resources": {"memory": "1Gi"}, "name": "n"})
    assert (made.timeout, made.resources.memory, made.name) == (7200.0, 2**30, "n")
    with pytest.raises(UnknownKey):
        prepare(draft("train.py", changes={"worker": 2}))
    with pytest.raises(InvalidSpec, match="workers"):
        prepare(draft("train.py", changes={"workers": 0}))


def test_a_file_that_is_too_large_stops_what_must_travel_only(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERRY_MAX_FILE", "1000")
    write(project, "big.bin", "x" * 2000)
    with pytest.raises(FileTooLarge):
        prepare(draft("train.py"))
    prepared = prepare(draft("train.py", foreground=True))
    assert [left.path for left in prepared.left_out] == ["big.bin"]


def test_nothing_to_run_is_told(project: Path) -> None:
    with pytest.raises(InvalidSpec, match="no command"):
        prepare(draft())


# --- again


@pytest.fixture
def earlier(project: Path) -> RunDetail:
    made = spec("train.py", "--lr", "1", foreground=True, changes={"tags": ["a"], "workers": 2})
    run = Run(id="r1", name="train", owner="me", project="default", spec=made)
    return RunDetail(run=run, attempts=(), params={}, metrics=(), events=())


def test_again_is_the_same_code_in_a_copy_whatever_was_edited_since(
    earlier: RunDetail, project: Path
) -> None:
    (project / "train.py").unlink()
    prepared = prepare(from_run(earlier))
    then = earlier.run.spec
    assert prepared.spec == msgspec.structs.replace(
        then, code=msgspec.structs.replace(then.code, in_place="")
    )
    assert prepared.parent == "r1"
    assert prepared.digests == ()


def test_again_with_changes_and_other_arguments(earlier: RunDetail) -> None:
    prepared = prepare(from_run(earlier, Draft(words=("--lr", "2"), changes={"workers": 3})))
    made = prepared.spec
    assert made.command == ("python", "train.py", "--lr", "2")
    assert (made.workers, made.tags) == (3, ("a",))


# --- sending


class Receiver(FakePlane):
    """Takes packs and refuses runs whose bundle it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}
        self.order: list[str] = []
        self.on("POST /api/v1/runs", self.submit)
        self.on("POST /api/v1/blobs/missing", self.missing)
        self.on("POST /api/v1/blobs/pack", self.pack)

    def submit(self, seen: Seen) -> Answer:
        ask = msgspec.json.decode(seen.body, type=Submit)
        if ask.spec.code.bundle not in self.blobs:
            return json(BundleMissing("push").envelope(), 409)
        run = Run(id="r1", name="x", owner="me", project="default", spec=ask.spec)
        return json(run, 201)

    def missing(self, seen: Seen) -> Answer:
        asked = msgspec.json.decode(seen.body, type=Digests).digests
        return json(Digests(digests=tuple(d for d in asked if d not in self.blobs)))

    def pack(self, seen: Seen) -> Answer:
        for digest, _size, pieces in iter_pack(io.BytesIO(seen.body).read):
            self.blobs[digest] = b"".join(pieces)
            self.order.append(digest)
        return Answer(b"", 204)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    plane = Receiver()
    with serving(plane):
        yield plane


def test_what_is_missing_is_pushed_once_and_the_manifest_last(
    project: Path, receiver: Receiver
) -> None:
    prepared = prepare(draft("train.py"))
    client = receiver.client()
    assert send(client, prepared).id == "r1"
    assert set(receiver.blobs) == set(prepared.digests)
    assert receiver.order[-1] == prepared.spec.code.bundle
    manifest = msgspec.json.decode(receiver.blobs[receiver.order[-1]], type=Manifest)
    assert {e.digest for e in manifest.entries if not e.link} <= set(receiver.blobs)
    keys = {s.headers["idempotency-key"] for s in receiver.seen if s.path.endswith("/runs")}
    assert len(keys) == 1

    before = len(receiver.seen)
    send(client, prepared)
    assert len(receiver.seen) == before + 1  # nothing changed: one request


def test_only_what_changed_travels(project: Path, receiver: Receiver) -> None:
    client = receiver.client()
    send(client, prepare(draft("train.py")))
    receiver.order.clear()
    write(project, "train.py", "print('training better')")
    prepared = prepare(draft("train.py"))
    send(client, prepared)
    assert len(receiver.order) == 2  # the file and the manifest
    assert push(client, prepared) == 0


def test_an_edit_between_capture_and_push_is_captured_too(
    project: Path, receiver: Receiver
) -> None:
    prepared = prepare(draft("train.py"))
    write(project, "train.py", "print('edited')")
    run = send(receiver.client(), prepared)
    assert b"print('edited')" in receiver.blobs.values()
    assert b"print('training')" not in receiver.blobs.values()
    assert prepared.spec.code.bundle not in receiver.blobs
    assert run.spec.code.bundle in receiver.blobs


def never_at_rest(project: Path, receiver: Receiver) -> None:
    """Have a file of the project grow whenever it is about to be sent."""

    def missing(seen: Seen) -> Answer:
        with (project / "other.txt").open("a") as log:
            log.write("a line\n")
        return receiver.missing(seen)

    write(project, "other.txt", "begun\n")
    receiver.on("POST /api/v1/blobs/missing", missing)


def test_a_file_that_never_rests_is_left_out_of_the_record_of_a_run_in_place(
    project: Path, receiver: Receiver
) -> None:
    never_at_rest(project, receiver)
    run = send(receiver.client(), prepare(draft("train.py", foreground=True)))
    manifest = msgspec.json.decode(receiver.blobs[run.spec.code.bundle], type=Manifest)
    assert "train.py" in {entry.path for entry in manifest.entries}
    assert [(left.path, "written to" in left.why) for left in manifest.left_out] == [
        ("other.txt", True)
    ]


def test_a_file_that_never_rests_is_named_where_the_run_needs_a_copy(
    project: Path, receiver: Receiver
) -> None:
    never_at_rest(project, receiver)
    with pytest.raises(ChangedDuringCapture, match=r"other\.txt"):
        send(receiver.client(), prepare(draft("train.py")))


def test_where_nothing_can_be_pushed_the_reason_is_told(project: Path, receiver: Receiver) -> None:
    def full(seen: Seen) -> Answer:
        return json({"error": {"code": "storage-full", "message": "no space left"}}, 503)

    receiver.on("POST /api/v1/blobs/pack", full)
    with pytest.raises(Exception, match="no space left"):
        send(receiver.client(), prepare(draft("train.py")))


def test_preparing_changes_nothing_in_the_project(project: Path) -> None:
    def tree() -> list[tuple[str, int]]:
        return sorted((str(p), p.lstat().st_mtime_ns) for p in project.rglob("*"))

    steps: list[Callable[[], object]] = [
        lambda: prepare(draft("train.py")),
        lambda: prepare(draft("train.py", foreground=True)),
    ]
    before = tree()
    for step in steps:
        step()
    assert tree() == before
    assert os.getcwd() == str(project)
