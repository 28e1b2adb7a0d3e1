"""``wherry explain``: why a run waited, failed, was tried again, went there."""

from __future__ import annotations

import sys
import time

import click

from wherry.cli import options

_STYLES = {"failed": "red", "consequence": "yellow", "retried": "yellow", "ended": "bold"}


@click.command()
@options.run_argument
@options.on_option
@options.json_option
def explain(ref: str, on: str, as_json: bool) -> None:
    """
    Say why a run waited, failed, was tried again, went where it went.

    Only what was recorded, in the order of time. RUN is an id, the beginning of one, a name (its
    newest run) or "last".
    """
    from wherry.cli import output
    from wherry.cli.colour import paint
    from wherry.core.explain import explain as facts_of

    facts = facts_of(options.connect(on).run(ref))
    if as_json:
        output.as_json(facts)
        return
    day = ""
    for fact in facts:
        local = time.localtime(fact.time)
        today = time.strftime("%Y-%m-%d", local)
        if today != day:
            day = today
            output.write(f"{paint(day, 'bold', sys.stdout)}\n")
        text = paint(fact.text, _STYLES.get(fact.kind, ""), sys.stdout)
        output.write(f"{time.strftime('%H:%M:%S', local)}  {text}\n")
