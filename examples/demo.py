"""
What `make demo` shows: two workers train together, then where everything is.

It uses a home of its own, so that your runs stay yours, and stops the control plane at its end. The
commands that it names start it again by themselves.
"""

import atexit
import os
import subprocess
import sys
from pathlib import Path

import wherry

ROOT = Path(__file__).parents[1]
HOME = Path(".cache/demo-home")
WHERRY = [sys.executable, "-m", "wherry.cli.main"]
GOAL = 0.95
PHASES = {
    "bundle": "code fetched",
    "environment": "packages installed",
    "barrier": "workers met",
    "run": "trained",
    "upload": "files kept",
}


def say(*words: str) -> int:
    """Show a command as one would type it, and run it."""
    print(f"\n$ wherry {' '.join(words)}", flush=True)
    return subprocess.run([*WHERRY, *words], check=False).returncode


os.chdir(ROOT)
os.environ["WHERRY_HOME"] = str(HOME.absolute())
atexit.register(subprocess.run, [*WHERRY, "down"], stderr=subprocess.DEVNULL)
if status := say("run", "--workers", "2", "examples/digits_xgboost.py"):
    sys.exit(status)
detail = wherry.connect().run("last")
model = f".cache/demo-model/{detail.run.id}"
if status := say("get", detail.run.id, "--to", model):
    sys.exit(status)

accuracy = next(m.last for m in detail.metrics if m.name == "accuracy" and m.rank == 0)
phases = detail.attempts[-1].ranks[0].phases
print(f"\naccuracy  {accuracy:.3f} on images that no worker has seen")
print(f"model     {model}/digits.ubj")
for phase, words in PHASES.items():
    print(f"{phases.get(phase, 0):7.2f} s  {words}")
print("\nTry next:")
for words in ("show last", "metrics last --rank 0 accuracy", "run --from last --workers 1"):
    wherry_here = os.path.relpath(Path(sys.executable).with_name("wherry"))
    print(f"  WHERRY_HOME={HOME} {wherry_here} {words}")
if accuracy < GOAL:
    sys.exit(f"error: accuracy {accuracy:.3f} is below {GOAL}")
