"""Named control planes: one private file, kept as the person wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fake_plane import json, serving
from wherry.errors import Conflict, InvalidInput, NotFound, Unauthorized, Unavailable
from wherry.sdk import contexts
from wherry.sdk.connect import connect


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WHERRY_CONTEXT", raising=False)
    return tmp_path / "home"


def names() -> list[str]:
    return [c.name + ("*" if c.current else "") for c in contexts.contexts()]


def test_this_machine_is_always_there_and_in_use(home: Path) -> None:
    assert names() == ["local*"]
    assert contexts.context() == contexts.Context("local", None, True)
    assert not home.exists()  # looking writes nothing


def test_a_context_is_written_down_and_found_again() -> None:
    contexts.add("team", "https://wherry.example/", "tok")
    found = contexts.context("team")
    assert found.endpoint is not None
    assert (found.endpoint.url, found.endpoint.token) == ("https://wherry.example", "tok")
    assert names() == ["local*", "team"]


def test_the_one_in_use_is_the_variable_else_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts.add("a", "http://a", "")
    contexts.add("b", "http://b", "")
    contexts.use("a")
    assert contexts.context().name == "a"
    monkeypatch.setenv("WHERRY_CONTEXT", "b")
    assert contexts.context().name == "b"
    assert names() == ["local", "a", "b*"]
    assert contexts.context("local").endpoint is None


def test_tokens_are_readable_by_their_owner_alone(home: Path) -> None:
    contexts.add("team", "https://wherry.example", "tok")
    assert (home / "contexts.toml").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700


def test_what_a_person_wrote_into_the_file_stays(home: Path) -> None:
    home.mkdir()
    (home / "contexts.toml").write_text("# mine\n[contexts.a]\nurl = 'http://a'  # the old one\n")
    contexts.add("b", "http://b", "")
    contexts.use("b")
    text = (home / "contexts.toml").read_text()
    assert "# mine" in text and "# the old one" in text
    assert names() == ["local", "a", "b*"]


def test_removing_the_one_in_use_falls_back_to_this_machine() -> None:
    contexts.add("team", "http://a", "")
    contexts.use("team")
    contexts.remove("team")
    assert names() == ["local*"]


def test_adding_again_is_harmless_but_never_replaces() -> None:
    contexts.add("team", "http://a", "t")
    contexts.add("team", "http://a/", "t")
    with pytest.raises(Conflict, match="http://a"):
        contexts.add("team", "http://b", "t")


@pytest.mark.parametrize(
    ("name", "url"),
    [("local", "http://a"), ("", "http://a"), ("a b", "http://a"), ("-x", "http://a"),
     ("a", "ftp://a"), ("a", "a:80"), ("a", "http://")],
)  # fmt: skip
def test_what_cannot_be_a_context_is_refused(name: str, url: str, home: Path) -> None:
    with pytest.raises(InvalidInput):
        contexts.add(name, url, "")
    assert not (home / "contexts.toml").exists()


def test_an_unknown_one_is_told_with_the_nearest() -> None:
    contexts.add("cluster", "http://a", "")
    with pytest.raises(NotFound, match="'clutser'") as caught:
        connect("clutser")
    assert "'cluster'" in caught.value.hint
    for change in (contexts.use, contexts.remove):
        with pytest.raises(NotFound):
            change("clutser")


@pytest.mark.parametrize("text", ["[contexts", "contexts = 3", "[contexts.a]\nname = 'x'", "\0"])
def test_a_broken_file_is_told_in_words(text: str, home: Path) -> None:
    home.mkdir()
    (home / "contexts.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"contexts\.toml"):
        contexts.contexts()


def test_checking_asks_with_the_credential() -> None:
    with serving() as plane:
        contexts.add("team", plane.url, "tok")
        plane.on("GET /api/v1/status", json(Unauthorized("wrong").envelope(), 401))
        with pytest.raises(Unauthorized):
            contexts.check("team")
        assert plane.seen[0].headers["authorization"] == "Bearer tok"
    with pytest.raises(Unavailable, match="does not answer"):
        contexts.check("team")
