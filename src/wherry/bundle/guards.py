"""
What must not travel by accident: caches, virtual environments, and secrets at any depth.

Called by ``walk`` (folders to prune) and ``capture`` (each file). A line ``!path`` in
``.wherryignore`` overrules the guards for secrets; a guess must have a way out.
"""

from __future__ import annotations

import re

#: Folders that are never part of a project's sources.
NEVER = frozenset(
    [
        ".git",
        ".hg",
        ".svn",
        ".jj",
        "__pycache__",
        "node_modules",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
        ".tox",
        ".nox",
        ".eggs",
        ".ipynb_checkpoints",
    ]
)
#: A folder with this file is a virtual environment, whatever its name.
VENV_MARK = "pyvenv.cfg"
#: Larger files are not searched for tokens: people write secrets into small ones, and the search
#: costs more than the digest.
SCAN_LIMIT = 64 * 1024

_SECRET_PATH = re.compile(
    r"""(?:^|/)(?:
      \.env(?!\.(?:example|sample|template|dist)$)(?:[.\-_][^/]*|rc)?  # .env, .env.local, .envrc
    | \.envs?/.* | \.aws/.* | \.ssh/.* | \.gnupg/.* | \.config/gcloud/.* | \.azure/.*
    | \.kube/config | kubeconfig | \.docker/config\.json | \.dockercfg
    | id_(?:rsa|dsa|ecdsa|ed25519)(?!\.pub$)[^/]*
    | [^/]*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|ppk)
    | [._]netrc | \.pypirc | \.pgpass | \.git-credentials | \.htpasswd
    | \.streamlit/secrets\.toml
    | client_secret[^/]*\.json | [^/]*service[_-]?account[^/]*\.json
    )$""",
    re.VERBOSE | re.IGNORECASE,
)

# What a token starts with is searched first: several times faster than the expression.
_TOKENS: tuple[tuple[bytes, re.Pattern[bytes], str], ...] = tuple(
    (prefix, re.compile(pattern), what)
    for prefix, pattern, what in (
        (b"AKIA", rb"\bAKIA(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}\b", "an AWS key"),
        (b"ASIA", rb"\bASIA(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}\b", "an AWS key"),
        (
            b"PRIVATE KEY-----",  # in a file of its own, or within a string of JSON or Python
            rb"(?m)BEGIN [A-Z ]*PRIVATE KEY-----(?:\s*$|\\n[\w+/]{20})",
            "a private key",
        ),
        (b"ghp_", rb"\bghp_[A-Za-z0-9]{36}", "a GitHub token"),
        (b"github_pat_", rb"\bgithub_pat_[A-Za-z0-9_]{50}", "a GitHub token"),
        (b"hf_", rb"\bhf_[A-Za-z0-9]{34}\b", "a Hugging Face token"),
        (b"sk-", rb"\bsk-(?:proj-|svcacct-|ant-)?[A-Za-z0-9_-]{32}", "an API key (sk-…)"),
    )
)


def secret_name(path: str) -> str:
    """Why this relative path looks like a secret by its name alone; "" where it does not."""
    return "looks like a secret by its name" if _SECRET_PATH.search(path) else ""


def secret_content(data: bytes) -> str:
    """Why these bytes look like they hold a secret; "" where they do not, or are no text."""
    if b"\0" in data[:8192]:
        return ""
    for prefix, pattern, what in _TOKENS:
        if prefix in data and pattern.search(data):
            return f"holds what looks like {what}"
    return ""
