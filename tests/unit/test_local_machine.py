"""What the local back end believes of the machine, and what of our environment agents get."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.backends.local import cgroups, machine
from wherry.backends.local.cgroups import Cgroups, Hierarchy

LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb)
  MIG 1g.18gb     Device  0: (UUID: MIG-1111)
  MIG 1g.18gb     Device  1: (UUID: MIG-2222)
GPU 2: NVIDIA H200 (UUID: GPU-cccc)
"""


def test_gpus_are_listed_by_index_and_slices_by_uuid() -> None:
    assert machine.parse_gpus(LISTING) == ("0", "MIG-1111", "MIG-2222", "2")
    assert machine.parse_gpus("No devices found.\n") == ()


@pytest.mark.parametrize(
    ("value", "expected"), [("", ()), ("-1", ()), ("3", ("3",)), ("0, GPU-x", ("0", "GPU-x"))]
)
def test_our_own_cuda_visible_devices_is_the_whole_truth(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert machine.gpus.__wrapped__() == expected


def test_agents_get_a_few_variables_and_no_secret() -> None:
    passed = {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "UV_INDEX_URL": "i", "https_proxy": "p"}
    kept_back = {"VIRTUAL_ENV": "v", "LD_LIBRARY_PATH": "l", "AWS_SECRET": "s", "XPATH": "x"}
    assert machine.agent_environment({**passed, **kept_back}) == passed


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def unified(root: Path, own: str) -> Hierarchy:
    return Hierarchy(version=2, controllers=frozenset({""}), root=root, own=root / own)


def detect(monkeypatch: pytest.MonkeyPatch, hierarchy: Hierarchy) -> Cgroups:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: iter([hierarchy]))
    return Cgroups.detect()


def test_limits_are_made_in_the_nearest_group_that_hands_on_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(
        tmp_path,
        {
            "user/cgroup.subtree_control": "memory cpu",
            "user/cgroup.procs": "",
            "user/scope/cgroup.subtree_control": "",
        },
    )
    found = detect(monkeypatch, unified(tmp_path, "user/scope"))
    assert found == Cgroups(memory=tmp_path / "user", cpu=tmp_path / "user", version=2)


def test_no_limit_of_ours_is_escaped_to_make_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(
        tmp_path,
        {
            "slice/cgroup.subtree_control": "memory cpu",
            "slice/cgroup.procs": "",
            "slice/service/cgroup.subtree_control": "",
            "slice/service/memory.max": "1000000",
        },
    )
    found = detect(monkeypatch, unified(tmp_path, "slice/service"))
    assert found == Cgroups(memory=None, cpu=None, version=2)


def test_a_group_of_version_2_dies_as_a_whole_and_does_not_swap(tmp_path: Path) -> None:
    groups = Cgroups(memory=tmp_path, cpu=tmp_path, version=2)
    group = tmp_path / "wherry-r1-1.0"
    tree(group, {"memory.swap.max": "max", "memory.oom.group": "0"})
    assert groups.folders("r1-1.0", memory=5000, cpu=0.5) == [str(group)]
    groups.make("r1-1.0", memory=5000, cpu=0.5)
    told = {path.name: path.read_text() for path in group.iterdir()}
    assert told == {
        "memory.max": "5000",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
    }


def test_a_group_is_made_only_for_a_limit_that_was_asked_for(tmp_path: Path) -> None:
    groups = Cgroups(memory=tmp_path / "memory", cpu=tmp_path / "cpu", version=1)
    assert groups.folders("x", memory=None, cpu=None) == []
    assert groups.folders("x", memory=1, cpu=None) == [str(tmp_path / "memory" / "wherry-x")]
    assert len(groups.folders("x", memory=1, cpu=1.0)) == 2


def test_limits_around_us_count_as_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(
        tmp_path,
        {
            "pod/memory.max": "3000000",
            "pod/memory.current": "1000000",
            "pod/cpu.max": "50000 100000",
            "pod/inner/memory.max": "max",
        },
    )
    monkeypatch.setattr(cgroups, "hierarchies", lambda: iter([unified(tmp_path, "pod/inner")]))
    assert cgroups.own_memory_limit() == (3000000, 1000000)
    assert cgroups.own_cpu_quota() == 0.5
    assert machine.total().cpu == 0.5
    assert machine.total().memory == 3000000
    assert machine.free(0).memory <= 2000000
