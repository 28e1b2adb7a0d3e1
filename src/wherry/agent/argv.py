"""
Parameters out of a command line, without knowing the script: what most parsers would agree on.

Used by ``agent.prepare`` for the run's record and by ``wherry.params()``. ``--epochs 3``,
``--lr=0.1``, ``--flag``, ``-x 1`` and ``key=value`` (Hydra, Sacred) are understood; other words are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Union

Scalar = Union[str, int, float, bool, None]

_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)", re.I)
_OPTION = re.compile(r"--?[A-Za-z][\w.\-/]*")
_PAIR = re.compile(r"[+~]{0,2}([A-Za-z_][\w.\-/@]*)=(.*)", re.S)
_WORDS = {"true": True, "false": False, "none": None, "null": None}
#: options of the interpreter that take a value
_PYTHON_VALUES = ("-W", "-X", "--check-hash-based-pycs")


def scalar(text: str) -> Scalar:
    """The text as a number or a truth value where it is one."""
    if _INT.fullmatch(text) and len(text) <= 18:
        return int(text)
    if _FLOAT.fullmatch(text):
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
        if _OPTION.fullmatch(name):
            key = name.lstrip("-")
            if equals:
                found[key] = scalar(value)
            elif at < len(words) and not _is_option(words[at]):
                found[key] = scalar(words[at])
                at += 1
            else:
                found[key] = True
        else:
            pair = _PAIR.fullmatch(word)
            if pair:
                found[pair[1]] = scalar(pair[2])
    return found


def after_script(command: Sequence[str]) -> list[str]:
    """The words of a command that belong to its script: those after it, or after ``-m module``."""
    words = list(command)
    if not words or not re.fullmatch(r"(.*/)?python[0-9.]*", words[0]):
        return words[1:]
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] in ("-m", "-c"):
            return words[at + 2 :]
        at += 2 if words[at] in _PYTHON_VALUES else 1
    return words[at + 1 :]


def _is_option(word: str) -> bool:
    """Whether the word is an option and not a value: negative numbers are values."""
    return word == "--" or bool(_OPTION.fullmatch(word.partition("=")[0]))
