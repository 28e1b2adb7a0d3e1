"""What projects write about their packages, and what resolvers answer: read, or refused."""

from pathlib import Path

import pytest

from wherry.bundle.requirements import flatten, portable, script_header
from wherry.bundle.versions import fits
from wherry.errors import EnvironmentFailed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_the_default_index_is_not_written_down() -> None:
    text = "--index-url https://pypi.org/simple\n\nsix==1.0 \\\n    --hash=sha256:00\n"
    assert portable(text, "x")[0] == "six==1.0 \\\n    --hash=sha256:00\n"


def test_a_full_commit_pins_and_a_branch_does_not() -> None:
    commit = f"lib @ git+https://example.org/lib@{'0a' * 20}\n"
    assert portable(commit, "uv.lock") == (commit, False)
    for line in ("lib @ git+https://example.org/lib@main", "lib==1.0"):
        with pytest.raises(EnvironmentFailed, match=r"nothing says what 'lib.*' must contain"):
            portable(line, "uv.lock")


def test_requirements_are_read_with_what_they_include(root: Path) -> None:
    (root / "more").mkdir()
    (root / "wheels").mkdir()
    (root / "requirements.txt").write_text(
        "-r more/a.txt  # there\n--constraint=c.txt\nsix==1.0 \\\n  --hash=sha256:00\n\n"
        "-f wheels\n--index-url https://example.org/simple\n# nothing\n"
    )
    (root / "more/a.txt").write_text("-r ../requirements.txt\nnumpy>=2 ; python_version > '3'\n")
    (root / "c.txt").write_text("numpy<3\n")
    flat = flatten(root / "requirements.txt")
    assert flat.lines == (
        "numpy>=2 ; python_version > '3'", "six==1.0    --hash=sha256:00", f"-f {root}/wheels",
        "--index-url https://example.org/simple",
    )  # fmt: skip
    assert flat.constraints == ("numpy<3",)


@pytest.mark.parametrize(
    "line", ["-e .", ".", "./lib", "lib @ file:///x", "x.whl", "-e git+x#egg=y"]
)
def test_local_requirements_are_refused_by_name(root: Path, line: str) -> None:
    (root / "requirements.txt").write_text(line + "\n")
    with pytest.raises(EnvironmentFailed) as caught:
        flatten(root / "requirements.txt")
    assert line in caught.value.message and "requirements.txt" in caught.value.message


def test_a_missing_include_is_named(root: Path) -> None:
    (root / "requirements.txt").write_text("-r gone.txt\n")
    with pytest.raises(EnvironmentFailed, match=r"gone\.txt cannot be read"):
        flatten(root / "requirements.txt")


def test_a_header_that_is_no_toml_is_said(root: Path) -> None:
    (root / "x.py").write_text("# /// script\n# dependencies = [\n# ///\n")
    with pytest.raises(EnvironmentFailed, match="no TOML"):
        script_header(root / "x.py")
    (root / "x.py").write_text("# /// other\n# a = 1\n# ///\n")
    assert script_header(root / "x.py") is None
    (root / "x.py").write_bytes(b"\xff\xfe")
    assert script_header(root / "x.py") is None


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("3.11.7", ">=3.11", True),
        ("3.11.7", ">=3.11,<3.12", True),
        ("3.12.0", ">=3.11,<3.12", False),
        ("3.11.7", "==3.11.*", True),
        ("3.11.7", "==3.11", False),
        ("3.11.7", "!=3.11.7", False),
        ("3.11.7", "~=3.10", True),
        ("3.11.7", "~=3.10.2", False),
        ("3.11.7", ">3.11.7", False),
        ("3.11.7", "<=3.11.7", True),
        ("3.11.7", "", True),
    ],
)
def test_requires_python_is_understood(version: str, wanted: str, met: bool) -> None:
    assert fits(version, wanted) is met
