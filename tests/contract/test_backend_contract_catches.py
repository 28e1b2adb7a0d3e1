"""Every promise of the contract is guarded: a back end that breaks it fails the named test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.contract.faulty_backends import FAULTS
from wherry.testing.backends import BackendContract

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What became of the test that must catch each fault: "passed", "failure" or "error"."""
    folder = tmp_path_factory.mktemp("faults")
    nodes = [
        f"{HERE / 'faulty_backends.py'}::Test{name}::{fault.CATCHES}"
        for name, fault in FAULTS.items()
    ]
    report = folder / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *nodes],
        cwd=HERE.parent.parent,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        check=False,
    )
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
        name = case.attrib["classname"].rpartition(".Test")[2]
        # A fault may disturb the clearing up as well, which is told as a second case.
        found[name] = kind if found.get(name) != "failure" else "failure"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_contract_catches(name: str, outcomes: Mapping[str, str]) -> None:
    assert outcomes[name] == "failure"


def test_every_fault_names_a_test_of_the_contract() -> None:
    tests = {name for name in dir(BackendContract) if name.startswith("test_")}
    assert {fault.CATCHES for fault in FAULTS.values()} <= tests
