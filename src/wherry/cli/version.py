"""``wherry version`` and ``wherry completion``."""

from __future__ import annotations

import click

from wherry.cli import options

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@options.json_option
def version(as_json: bool) -> None:
    """Print the version of this command and of the control plane, if one is running here."""
    import sys

    from wherry import settings
    from wherry._version import __version__
    from wherry.cli import output
    from wherry.sdk.connect import find_server

    found = find_server(settings.home())
    data = {
        "version": __version__,
        "python": sys.version.split()[0],
        "server": found.version if found else None,
    }
    output.thing(data, lambda d: ((k, v or "") for k, v in d.items()), json=as_json)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@options.json_option
def completion(shell: str, as_json: bool) -> None:
    """
    Print a completion script for a shell.

    bash: put eval "$(wherry completion bash)" into ~/.bashrc; zsh: the same with zsh into
    ~/.zshrc; fish: wherry completion fish > ~/.config/fish/completions/wherry.fish
    """
    from click.shell_completion import get_completion_class

    from wherry.cli import output
    from wherry.cli.main import cli

    maker = get_completion_class(shell)
    assert maker is not None
    script = maker(cli, {}, "wherry", "_WHERRY_COMPLETE").source()
    if as_json:
        output.as_json({"shell": shell, "script": script})
    else:
        output.write(script)
