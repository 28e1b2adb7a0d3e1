"""
Parameters out of a command line, without knowing the script: what most parsers would agree on.

Used by ``agent.prepare`` for the run's record and by ``wherry.params()``. ``--epochs 3``,
``--lr=0.1``, ``--flag``, ``-x 1`` and ``key=value`` (Hydra, Sacred) are understood; other words are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Union

    Scalar = Union[str, int, float, bool, None]

# Compiled when they are first needed: a run without arguments starts sooner.
_INT = r"[+-]?[0-9]+"
_FLOAT = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf))"
_OPTION = r"--?[A-Za-z][\w.\-/]*"
_PAIR = r"[+~]{0,2}([A-Za-z_][\w.\-/@]*)=((?s:.*))"
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_MPI = ("mpirun", "mpiexec", "orterun")
#: options of the interpreter that take a value
_PYTHON_VALUES = ("-W", "-X", "--check-hash-based-pycs")


def scalar(text: str) -> Scalar:
    """The text as a number or a truth value where it is one."""
    if re.fullmatch(_INT, text) and len(text) <= 18:
        return int(text)
    if re.fullmatch(_FLOAT, text):
        return float(text)
    return _WORDS.get(text.lower(), text)


def params_from_argv(words: Sequence[str]) -> dict[str, Scalar]:
    """
    Parameters from the words that follow the script's name.

    An option that is followed by no value is ``True``; one given twice keeps the last.
    """
    found: dict[str, Scalar] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            continue
        name, equals, value = word.partition("=")
        if re.fullmatch(_OPTION, name):
            key = name.lstrip("-")
            if equals:
                found[key] = scalar(value)
            elif at < len(words) and not _is_option(words[at]):
                found[key] = scalar(words[at])
                at += 1
            else:
                found[key] = True
        else:
            pair = re.fullmatch(_PAIR, word)
            if pair:
                found[pair[1]] = scalar(pair[2])
    return found


def after_script(command: Sequence[str]) -> list[str]:
    """The words of a command that belong to its script: those after it, or after ``-m module``."""
    words = list(command)
    name = words[0].rpartition("/")[2] if words else ""
    if name == "torchrun" or name in _MPI or words[1:3] == ["-m", "torch.distributed.run"]:
        words = _launched(words)
    if not words or not re.fullmatch(r"(.*/)?python[0-9.]*", words[0]):
        return words[1:]
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] in ("-m", "-c"):
            return words[at + 2 :]
        at += 2 if words[at] in _PYTHON_VALUES else 1
    return words[at + 1 :]


def _launched(words: list[str]) -> list[str]:
    """What a launcher starts, as far as can be told without knowing its options."""
    for at, word in enumerate(words[1:], start=1):
        if re.fullmatch(r"(.*/)?python[0-9.]*", word):
            return words[at:]
        if word.endswith(".py"):
            return ["python", *words[at:]]
    return []


def _is_option(word: str) -> bool:
    """Whether the word is an option and not a value: negative numbers are values."""
    return word == "--" or bool(re.fullmatch(_OPTION, word.partition("=")[0]))
