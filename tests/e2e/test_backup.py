"""A backup is worth what comes back from it."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import World
from wherry.sdk import connect as sdk


def test_what_was_backed_up_comes_back_whole_in_an_empty_home(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.write("save.py", "from pathlib import Path\nPath('model.txt').write_text('weights')\n")
    ref = world.detach("save.py")
    world.until(ref, "succeeded")
    backup = world.project.parent / "backup.tar"
    assert world.cli("backup", str(backup)).returncode == 0
    sdk.stop_server(world.home)
    world.home.rename(world.home.with_name("lost"))

    restored = world.cli("restore", "--yes", str(backup))
    assert restored.returncode == 0, restored.stderr
    copied = world.cli("get", ref, "--to", "out")
    assert copied.returncode == 0, copied.stderr
    assert (world.project / "out/model.txt").read_text() == "weights"
    again = world.json("retry", ref)
    run = again[0] if isinstance(again, list) else again
    world.until(run["id"], "succeeded")
