"""Job files: what people may write, what is refused, and in which words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from wherry.core import files
from wherry.core.job import (
    Call,
    Code,
    Environment,
    JobSpec,
    MetricRule,
    Resources,
    Role,
    usable_name,
)
from wherry.errors import InvalidSpec, UnknownKey

DESIGN = """
name: digits
command: python train.py --epochs 3
workers: 4
processes: 1
resources: {cpu: 2, memory: 4Gi, gpu: 1}
params: {lr: 0.1}
restarts: 2
timeout: 2h
metrics: {accuracy: {from: stdout, pattern: "accuracy=([0-9.]+)"}}
"""

DIGITS = JobSpec(
    name="digits",
    command=("python", "train.py", "--epochs", "3"),
    workers=4,
    resources=Resources(cpu=2, memory=4 * 2**30, gpu=1),
    params={"lr": 0.1},
    restarts=2,
    timeout=7200.0,
    metrics={"accuracy": MetricRule(pattern="accuracy=([0-9.]+)")},
)


def spec(text: str, format: files.Format = "yaml") -> JobSpec:
    return files.spec(files.load(text, format=format, source="job"))


def test_the_job_of_the_documentation_means_what_it_says() -> None:
    assert spec(DESIGN) == DIGITS


def test_the_three_formats_mean_the_same() -> None:
    data = yaml.safe_load(DESIGN)
    assert spec(json.dumps(data), "json") == DIGITS
    toml = """
        name = "digits"
        command = ["python", "train.py", "--epochs", "3"]
        workers = 4
        restarts = 2
        timeout = "2h"
        [resources]
        cpu = 2
        memory = "4Gi"
        gpu = 1
        [params]
        lr = 0.1
        [metrics]
        accuracy = "accuracy=([0-9.]+)"
    """
    assert spec(toml, "toml") == DIGITS


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("command: [python, 'a b.py']", "command", ("python", "a b.py")),
        ("command: python 'a b.py' \"c\"", "command", ("python", "a b.py", "c")),
        ("command: x\ntimeout: 90", "timeout", 90.0),
        ("command: x\ngrace: 1m30s", "grace", 90.0),
        ("command: x\nresources: {memory: 1000}", "resources", Resources(memory=1000)),
        ("command: x\nenv: {N: 4, F: 0.5, S: 'on'}", "env", {"N": "4", "F": "0.5", "S": "on"}),
        ("command: x\nparams: {lr: 1e-3, n: null}", "params", {"lr": 0.001, "n": None}),
        ("command: x\nnote: 2026-01-02", "note", "2026-01-02"),
        ("x: &a {cpu: 1}\n", None, None),
        ("command: x\nmetrics: {a: 'a=(.)'}", "metrics", {"a": MetricRule(pattern="a=(.)")}),
    ],
)
def test_what_people_write_is_understood(text: str, field: str | None, value: Any) -> None:
    if field is None:
        with pytest.raises(UnknownKey):
            spec(text)
    else:
        assert getattr(spec(text), field) == value


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("worker: 3", "'worker'", "'workers'"),
        ("resources: {memmory: 1Gi}", "'resources.memmory'", "'memory'"),
        ("metrics: {acc: {patern: '(x)'}}", "'metrics.acc.patern'", "'pattern'"),
        ("metrics: {acc: {source: stdout, pattern: '(x)'}}", "'metrics.acc.source'", "'from'"),
        ("environment: {pyhton: '3.12'}", "'environment.pyhton'", "'python'"),
        ("memory: 4Gi", "'memory'", "resources: {memory: ...}"),
        ("zzzzzz: 1", "'zzzzzz'", "known: "),
    ],
)
def test_a_misspelt_key_is_named_with_the_right_one(text: str, key: str, hint: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        spec(text)
    assert caught.value.message == f"job: there is no key {key}"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workers: four", 'job: workers: expected a whole number, found "four"'),
        ("workers: 0", "job: workers: expected a whole number >= 1, found 0"),
        ("workers: true", "job: workers: expected a whole number, found true"),
        ("name: no", "job: name: expected text, found false"),
        ("tags: [a, 1]", 'job: tags[1]: expected text, found ["a", 1]'),
        ("tags: a", 'job: tags: expected a list, found "a"'),
        ("resources: 3", "job: resources: expected keys and values, found 3"),
        ("resources: {cpu: 0}", "job: resources.cpu: expected a number > 0.0, found 0"),
        ("resources: {memory: lots}", "job: resources.memory: 'lots' is not an amount of memory"),
        ("timeout: soon", "job: timeout: 'soon' is not a duration"),
        ("params: {a: [1]}", "job: params.a: expected true or false or a whole number"),
        ("params: {a: .nan}", "job: params.a: nan is not a finite number"),
        (f"params: {{a: {2**70}}}", "does not fit into 64 bits"),
        ("env: {A: yes}", "job: env.A: expected text, found true"),
        ("env: {1: x}", "job: env.1: a key has to be text"),
        ("group: gung", 'job: group: expected "gang" or "elastic" or "pool", found "gung"'),
        ("metrics: {a: {from: stdout}}", "job: metrics.a: the key 'pattern' is missing"),
        ("command: python 'x", 'job: command: "python \'x": no closing quotation'),
        ("", "job: expected keys and values, found nothing"),
        ("[1, 2]", "job: expected keys and values, found [1, 2]"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec(text)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("format", "text", "where"),
    [
        ("yaml", "a: [1\nb: 2", "line 2, column 2"),
        ("yaml", "\tname: x", "line 1, column 1"),
        ("yaml", "name: a\nworkers: 1\nname: b", "line 3: the key 'name' stands twice"),
        ("yaml", "params: {a: 1, a: 2}", "line 1: the key 'a' stands twice"),
        ("yaml", "name: \x01", "not allowed"),
        ("yaml", "name: a\n---\nname: b", "line 2"),
        ("yaml", "x: !!python/object/apply:os.system [id]", "line 1, column 4"),
        ("toml", "name = \nworkers = 1", "line 1, column 8"),
        ("toml", "name = 'a'\nname = 'b'\n", "line 2"),
        ("json", '{"name": }', "line 1, column 10"),
        ("json", '{"name": "a", "name": "b"}', "the key 'name' stands twice"),
    ],
)
def test_broken_text_is_told_with_its_place(format: files.Format, text: str, where: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec(text, format)
    assert caught.value.message.startswith("job: ")
    assert where in caught.value.message


def test_aliases_that_stand_for_too_much_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    with pytest.raises(InvalidSpec, match="stand for too much"):
        spec(bomb)


def test_what_contains_itself_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="contains itself"):
        spec("params: &a {b: *a}")


@pytest.mark.parametrize("text", ["[" * 2000, "{a: " * 2000, '{"a":' * 2000])
@pytest.mark.parametrize("format", ["yaml", "json", "toml"])
def test_what_is_nested_too_deeply_is_refused(text: str, format: files.Format) -> None:
    with pytest.raises(InvalidSpec):
        spec(text, format)


def test_a_job_file_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="at most"):
        spec("# " + "x" * files.MAX_TEXT)


def test_people_may_write_groups_in_short() -> None:
    job = spec(
        "command: python train.py\n"
        "roles: {chief: 1, ps: {count: 2, command: python ps.py, resources: {memory: 2Gi}}}\n"
        "ends_with: chief\n"
        "retry_on: [75, SIGSEGV]\n"
        "fail_on: 3\n"
        "backoff: 1m\n",
    )
    assert job.roles == {
        "chief": Role(),
        "ps": Role(count=2, command=("python", "ps.py"), resources=Resources(memory=2 * 2**30)),
    }
    assert (job.ends_with, job.retry_on, job.fail_on) == (("chief",), ("75", "SIGSEGV"), ("3",))
    assert job.backoff == 60.0 and job.world_size == 3


def test_sizes_from_to_make_an_elastic_group() -> None:
    job = spec("command: x\nworkers: {min: 2, max: 8}\n")
    assert (job.group, job.min_workers, job.workers) == ("elastic", 2, 8)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("workers: {mni: 2, max: 8}", "workers.mni"),
        ("workers: {min: 2}", "'max' is missing"),
        ("roles: {ps: {cuont: 2}}", "roles.ps.cuont"),
        ("roles: {ps: two}", "roles.ps"),
        ("retry_on: [sigsegv]", "sigsegv"),
    ],
)
def test_a_mistake_in_a_group_is_named_with_its_path(text: str, word: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(word)) as refused:
        spec(f"command: x\n{text}\n")
    assert refused.value.hint or "expected" in refused.value.message


def test_tables_are_merged_key_by_key_and_lists_replaced() -> None:
    base = {"workers": 2, "env": {"A": "1", "B": "1"}, "tags": ["a"]}
    assert files.merge(base, {"env": {"B": "2"}, "tags": ["b"]}) == {
        "workers": 2, "env": {"A": "1", "B": "2"}, "tags": ["b"],
    }  # fmt: skip


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
KEYS = WORDS.filter(bool)
TAGS = KEYS.filter(lambda text: text.isprintable() and text == text.strip())
NAMES = WORDS.map(lambda text: text and usable_name(text))
SCALARS = st.one_of(
    WORDS, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(), st.none(),
)  # fmt: skip
POSITIVE = st.floats(1e-6, 1e12)
SPECS = st.builds(
    JobSpec,
    name=NAMES,
    command=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
    call=st.none() | st.builds(Call, payload=WORDS, name=WORDS),
    group=st.sampled_from(["gang", "elastic", "pool"]),
    workers=st.integers(1, 10_000),
    processes=st.integers(1, 1000),
    resources=st.builds(
        Resources,
        cpu=st.none() | POSITIVE,
        memory=st.none() | st.integers(1, 2**50),
        gpu=st.integers(0, 16),
    ),
    environment=st.builds(
        Environment, kind=st.sampled_from(["active", "built"]), python=WORDS, origin=WORDS
    ),
    env=st.dictionaries(KEYS.filter(lambda k: "=" not in k), WORDS, max_size=3),
    code=st.builds(Code, bundle=WORDS, workdir=WORDS, in_place=WORDS),
    params=st.dictionaries(WORDS, SCALARS, max_size=3),
    metrics=st.dictionaries(
        WORDS, st.builds(MetricRule, pattern=st.just("(x)"), source=st.just("stderr")), max_size=2
    ),
    restarts=st.integers(0, 100),
    timeout=st.none() | POSITIVE,
    grace=st.none() | POSITIVE,
    priority=st.integers(-100, 100),
    tags=st.lists(TAGS, max_size=3).map(tuple),
    note=WORDS,
).map(lambda job: replace(job, processes=1) if job.group == "elastic" else job)


@settings(deadline=None, max_examples=60)
@given(SPECS)
def test_a_spec_survives_being_dumped_and_read_again(job: JobSpec) -> None:
    assert files.spec(files.dump(job)) == job
    assert spec(json.dumps(files.dump(job)), "json") == job
