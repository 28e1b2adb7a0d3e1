"""What contract tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.agent import package


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, unpacked: what a back end starts."""
    return package.unpack(package.build_zip(), tmp_path_factory.mktemp("agent"))
