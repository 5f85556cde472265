"""`python -m deepcache COMMAND`: the commands are in `deepcache/commands`."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from deepcache.commands import convert, costs, metrics, results, sample, tune
from deepcache.errors import DeepCacheError

COMMANDS = (costs, tune, convert, sample, metrics, results)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and print its result.

    Returns:
        The exit code: 2 after a user's mistake, which is one line on stderr; else the gate's verdict, or 0.
    """
    parser = _Parser(prog="python -m deepcache", description="Tools around deepcache.cached.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    try:
        options = parser.parse_args(arguments)  # an option may be a value of ours, such as an order
        shown = options.run(options)
    except DeepCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(shown)
    return int(getattr(shown, "exit_code", 0))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


if __name__ == "__main__":
    sys.exit(main())
