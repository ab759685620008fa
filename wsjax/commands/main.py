"""The command `wsjax`, for work on your own data: `wsjax retrain` and `wsjax advise`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from wsjax.scripts import ending


class Command(NamedTuple):
    """A command: its module, with `main(config)` and `defaults(dataset)` as a script has them, and what it does."""

    module: str
    text: str


COMMANDS = {
    "retrain": Command("wsjax.commands.retrain", "retrain a model on all data that have come in: a job for cron"),
    "advise": Command("wsjax.commands.advise", "find out how to retrain on your data: which way, at which rate"),
}


def main() -> None:
    """Runs the command that the command line names, and ends as a script does."""
    ending.begin()  # before the imports that take a second
    from wsjax.scripts import cli, console

    with cli.user_errors():
        name, *flags = sys.argv[1:] or [""]
        if name in ("-h", "--help"):
            return _help(console.say)
        if name == "--version":
            from importlib import metadata

            return console.say(metadata.version("wsjax"))
        cli.check(name != "", f"a command is missing; available: {', '.join(COMMANDS)}; or wsjax --help")
        command = importlib.import_module(COMMANDS[cli.choose("command", name, list(COMMANDS))].module)
    sys.argv = [f"wsjax {name}", *flags]  # as its help calls it
    cli.run_script(command.main, command.defaults, command.__doc__)


def _help(say: Callable[[str], None]) -> None:
    say("usage: wsjax COMMAND [OPTIONS]")
    say("")
    for name, command in COMMANDS.items():
        say(f"  {name:10} {command.text}")
    say("")
    say("wsjax COMMAND --help explains a command; wsjax --version tells the version.")
