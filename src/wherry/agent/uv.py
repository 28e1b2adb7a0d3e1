"""
uv, as Wherry runs it: its environment, its cache, its words, and the Pythons that it may use.

Called by ``agent.environment``, which builds, and by ``bundle``, which locks. Standard
library only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

#: What a shell may have set for another purpose and would change what is built here.
_FOREIGN = frozenset(
    {
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "UV_PYTHON"),
        *("UV_SYSTEM_PYTHON", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_COMPILE_BYTECODE"),
        *("UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "UV_WORKING_DIRECTORY"),
    }
)


class EnvironmentFailed(Exception):
    """The environment cannot be made. ``tail``: the end of what uv said."""

    def __init__(self, message: str, hint: str = "", tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.tail = tail


class Uv:
    """uv, with the cache that has most of what is needed."""

    def __init__(self, path: str, cache: str) -> None:
        if not path:
            import shutil

            path = shutil.which("uv") or ""
        if not path:
            raise EnvironmentFailed(
                "uv is not on this machine", "pip install uv, or set WHERRY_UV to its path"
            )
        self.path = path
        self.env = uv_environ(os.environ)
        if not _writable(uv_cache(self.env)):
            self.env["UV_CACHE_DIR"] = os.path.join(cache, "uv")

    def run(self, *words: str) -> str:
        """What it prints. :raises EnvironmentFailed: with the reason in words."""
        try:
            done = subprocess.run(
                [self.path, *words],
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise EnvironmentFailed(f"uv cannot be started: {error}") from error
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        said = done.stderr.decode("utf-8", "replace")
        message, hint = explain(said)
        raise EnvironmentFailed(message, hint, said[-4000:])


def uv_cache(environ: Mapping[str, str]) -> str:
    """Where uv keeps what it has downloaded, unless it is told otherwise."""
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return environ.get("UV_CACHE_DIR") or os.path.join(base, "uv")


def _writable(folder: str) -> bool:
    """Whether files can be made in the folder, which need not exist yet."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def matches(version: str, wanted: str) -> bool:
    """Whether ``3.12.1`` is a ``3.12``."""
    parts = wanted.split(".")
    return version.split(".")[: len(parts)] == parts


def find_python(wanted: str, uv: str) -> str:
    """
    An interpreter of the version (``3.12`` or ``3.12.1``) on this machine; "" where there is none.

    This one, then pyenv's (whose shims uv cannot use), then whatever uv finds.
    """
    if sys.executable and matches("{}.{}.{}".format(*sys.version_info), wanted):
        return sys.executable
    folder = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found = []
    if os.path.isdir(os.path.join(folder, "versions")):
        for name in os.listdir(os.path.join(folder, "versions")):
            python = os.path.join(folder, "versions", name, "bin", "python")
            if (
                re.fullmatch(r"3(\.\d+)+", name)
                and matches(name, wanted)
                and os.path.exists(python)
            ):
                found.append(([int(n) for n in name.split(".")], python))
    if found:
        return max(found)[1]
    if not uv:
        return ""
    done = subprocess.run(
        [uv, "python", "find", "--no-project", "--system", wanted],
        env=uv_environ(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def uv_environ(environ: Mapping[str, str], *, pip_settings: bool = True) -> dict[str, str]:
    """
    The environment to run uv in: without what belongs to other projects, and with pip's settings
    (variables and ``pip.conf``) where uv has none of its own.
    """
    env = {k: v for k, v in environ.items() if k not in _FOREIGN}
    pip = _pip_settings(environ) if pip_settings else {}
    if "no-index" in pip and pip["no-index"].lower() not in ("0", "no", "false", "off", ""):
        env.setdefault("UV_NO_INDEX", "1")
    if "find-links" in pip:
        env.setdefault("UV_FIND_LINKS", ",".join(pip["find-links"].split()))
    if "cert" in pip:
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    if "index-url" in pip and "UV_INDEX_URL" not in env:
        env.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if "extra-index-url" in pip and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & env.keys():
        env["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        # pip takes the best version of any index; uv alone would stop at the first that has one.
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return env


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's options about indexes, from its files and then its variables, as pip reads them."""
    home = environ.get("HOME") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    own = environ.get("PIP_CONFIG_FILE", "")
    files = [
        "/etc/pip.conf",
        os.path.join(home, ".pip", "pip.conf"),
        os.path.join(home, "Library", "Application Support", "pip", "pip.conf"),
        os.path.join(config, "pip", "pip.conf"),
        os.path.join(environ.get("VIRTUAL_ENV") or "/nonexistent", "pip.conf"),
        own,
    ]
    names = ("index-url", "extra-index-url", "find-links", "cert", "no-index")
    found = {}
    present = [f for f in files if f and os.path.isfile(f)] if own != os.devnull else []
    if present:
        import configparser

        parser = configparser.RawConfigParser()
        try:
            parser.read(present, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            return {}
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({k: v for k, v in parser.items(section) if k in names})
    for name in names:
        value = environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    return found


_REASONS = (
    (
        r"(?:Because |error: )?(\S+) was not found in the (?:package registry|provided)",
        "there is no package named {0} on the index",
        "check its spelling; a private index is set with UV_INDEX or pip's extra-index-url",
    ),
    (
        r"(?:Because |and )there (?:is|are) (?:no|only the following) versions? of (\S+?)[:,]? ",
        "no version of {0} fits",
        "loosen the version, or see which ones the index has",
    ),
    (r"Hash mismatch for `([^`]+)`", "{0} is not the file that was locked", "lock again: uv lock"),
    (
        r"No space left on device",
        "no space is left on this machine",
        "wherry prune removes environments that are not used",
    ),
    (r"Git operation failed|failed to clone", "a package's Git repository cannot be fetched", ""),
    (
        r"error sending request|dns error|network was disabled|Network connectivity is disabled",
        "the package index cannot be reached",
        "check the network; a mirror is set with UV_DEFAULT_INDEX or pip's index-url",
    ),
    (
        r"Failed to build `([^`]+)`",
        "{0} has no wheel for this Python and platform, and does not build here",
        "take a version with a wheel, or another --python",
    ),
    (
        r"(?:Because |and )([\w.-]+)==(\S+) has no wheels with a matching",
        "{0} {1} has no wheel for this Python or platform",
        "take another version of it, or another --python",
    ),
    (
        r"No interpreter found for (Python [^ \n]+)",
        "there is no {0} on this machine",
        "install it, or name another with --python",
    ),
    (r"Invalid version request: (.+)", "{0}", "name a version like 3.12 with --python"),
)


def explain(said: str) -> tuple[str, str]:
    """Message and hint for what uv wrote to stderr."""
    # Older versions draw a tree; markers in braces only say for which platform.
    flat = re.sub(r"\{[^}]*\}", "", re.sub(r"[\s│╰─▶]+", " ", said))
    for pattern, message, hint in _REASONS:
        match = re.search(pattern, flat)
        if match:
            return message.format(*match.groups()), hint
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("error:", "cause:"))]
    last = (causes or lines or ["it failed without a word"])[-1]
    hint = "check the names and versions that were asked for, and that an index can be reached"
    return "uv: " + re.sub(r"^(error|cause):\s*", "", last), hint
