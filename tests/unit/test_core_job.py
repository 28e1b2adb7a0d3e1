"""JobSpec: amounts, durations, what fits together, and tolerance between versions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.core.job import (
    JobSpec,
    MetricRule,
    decode_spec,
    format_bytes,
    json_schema,
    parse_bytes,
    parse_seconds,
    usable_name,
)
from wherry.errors import InvalidSpec


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4Gi", 4 * 2**30), ("512Mi", 512 * 2**20), ("2G", 2 * 10**9), ("1.5k", 1500),
        ("7", 7), (7, 7), ("1 GiB", 2**30), ("3tib", 3 * 2**40), ("8B", 8),
    ],
)  # fmt: skip
def test_amounts_of_memory(text: str | int, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "Gi", "4 apples", "-1", "1e3", "i", "4i", "4Pi"])
def test_what_is_no_amount_of_memory_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.message and "512Mi" in caught.value.hint


@given(st.integers(0, 2**60))
def test_an_amount_that_is_written_out_reads_as_nearly_the_same(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=0.06, abs=0.5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), (0.5, 0.5), ("90s", 90), ("2h", 7200), ("1h30m", 5400),
     ("1d 1s", 86401)],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2y", "h", "2h!", "-1s", "1h 30"])
def test_what_is_no_duration_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_seconds(text)
    assert "1h30m" in caught.value.hint


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (JobSpec(), "no command"),
        (JobSpec(command=("a\0b",)), "NUL"),
        (JobSpec(command=("a",), env={"A=B": "1"}), "A=B"),
        (JobSpec(command=("a",), env={"": "1"}), "''"),
        (JobSpec(command=("a",), env={"A": "\0"}), "'A'"),
        (JobSpec(command=("a",), metrics={"m": MetricRule(pattern="x=(")}), "'x=('"),
        (JobSpec(command=("a",), metrics={"m": MetricRule(pattern="x=1")}), "no group"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(job: JobSpec, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words.replace("(", r"\(")):
        job.check()


def test_decoding_passes_over_keys_of_a_newer_version() -> None:
    data = b'{"command":["a"],"future":{"x":1},"resources":{"cpu":2,"tpu":4},"spec_version":2}'
    job = decode_spec(data)
    assert (job.command, job.resources.cpu) == (("a",), 2)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"command":"a"}', b'{"command":["a"],"workers":0}', b"\xff"]
)
def test_what_does_not_decode_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(InvalidSpec):
        decode_spec(data)


def test_the_world_is_workers_times_processes() -> None:
    assert JobSpec(command=("a",), workers=3, processes=4).world_size == 12


def test_the_schema_describes_every_key() -> None:
    properties = json_schema()["$defs"]["JobSpec"]["properties"]
    assert set(properties) == {f.encode_name for f in msgspec.structs.fields(JobSpec)}


def test_an_empty_spec_is_small() -> None:
    assert msgspec.json.encode(JobSpec(command=("a",))) == b'{"command":["a"]}'


@pytest.mark.parametrize(
    "name",
    ["../../evil/x", "a/b", "a\\b", ".", "..", "last", "\x1b[31mred", "a\nb", " a", "x" * 101],
)
def test_a_name_is_printable_no_path_and_no_word_of_ours(name: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a name") as caught:
        JobSpec(command=("x",), name=name).check()
    assert caught.value.hint
    JobSpec(command=("x",), name=usable_name(name)).check()


def test_a_name_may_have_blanks_and_any_script() -> None:
    for name in ("lr 0.1, wide", "größer", "実験-1"):
        assert JobSpec(command=("x",), name=name).check().name == usable_name(name) == name


@pytest.mark.parametrize("tag", ["", " ", "a\tb", "\x1b]0;title\x07", "x" * 101])
def test_a_tag_is_printable_and_not_empty(tag: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a tag"):
        JobSpec(command=("x",), tags=(tag,)).check()
