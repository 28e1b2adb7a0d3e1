"""
What holds of the project as a whole: reasons, names, nothing of one machine, nothing put off.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from wherry import errors

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]


def tracked() -> dict[str, str]:
    """Every text file of the project, committed or about to be, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    texts = {}
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            raw = path.read_bytes()
            if b"\0" not in raw:
                texts[name] = raw.decode("utf-8")
    return texts


def test_every_dependency_says_which_file_uses_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for requirement in DISTRIBUTED:
        line = next(line for line in lines if f'"{requirement}"' in line)
        reason = line.partition('",')[2].strip()
        used_by = re.match(r"# ([\w/]+(?:\.py)?)", reason)
        assert used_by, f"{requirement}: no reason"
        assert (ROOT / "src/wherry" / used_by[1]).exists(), (
            f"{requirement}: {used_by[1]} is no file"
        )


def test_the_lock_names_every_dependency() -> None:
    locked = set(re.findall(r"^([\w.-]+)==", tracked()["requirements.lock"], re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in [*DISTRIBUTED, *project["dependency-groups"]["dev"]]
    }
    assert wanted - locked == set(), "run: make lock"


def test_every_error_is_drawn_in_the_tree() -> None:
    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.WherryError)
    }
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b", errors.__doc__ or ""))
    assert names - drawn == set()


def test_every_error_has_a_code_of_its_own_and_words() -> None:
    classes = set(errors.BY_CODE.values())
    assert len(classes) == len(errors.BY_CODE)
    assert all(cls.__doc__ and cls.__doc__.strip().endswith(".") for cls in classes)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("src/**/*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


#: Files that must name what the others must not, with the reason.
NAMED_ON_PURPOSE = {
    ("a registry's host", "tests/unit/test_environment_words.py"): "proves that it is left out",
}


# Each pattern has a class of one character, so that this file does not match it.
@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("work put off", r"\b(TO[D]O|FIX[M]E|XX[X])\b"),
        ("a machine's path", r"[/](root|home/(?!me/)\w+|Users/\w+|work/main|work/shared)/"),
        ("a registry's host", r"(pypi[.]org|python[h]osted|npm[j]s|docker[.]io)/"),
        (
            "a credential",
            r"BEGIN [A-Z ]*PRIVATE [K]EY-----\n|\b(AKI[A](?!IOSFODNN7EXAMPLE)|ghp[_])\w{16}",
        ),
    ],
)
def test_no_file_holds(what: str, pattern: str) -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in tracked().items()
        if (what, name) not in NAMED_ON_PURPOSE
        for match in re.finditer(pattern, text)
    ]
    assert found == []


def test_make_check_holds_the_budgets_and_the_generated_pages() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    assert "tests/architecture" in recipe and "tests/docs/test_reference.py" in recipe
