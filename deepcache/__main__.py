"""`python -m deepcache COMMAND`: the commands are in `deepcache/commands`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from deepcache.commands import convert, costs, look, metrics, results, sample, tune
from deepcache.errors import DeepCacheError

NAME = "python -m deepcache"
_SILENT_S = 2.0
COMMANDS = (look, costs, tune, convert, sample, metrics, results)  # in the order in which one needs them


def main(arguments: list[str] | None = None) -> int:
    """Run a command and print its result; without a command, print what there is.

    Returns:
        The exit code: 2 after a user's mistake, which is one line on stderr; else the gate's verdict, or 0.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        return write(parser().format_help().rstrip())
    try:
        options = parser().parse_args(words)  # an option may be a value of ours, such as an order
        options.made_by = shlex.join([*NAME.split(), *words])
        with clock(words[0], is_shown=sys.stderr.isatty() and not getattr(options, "has_bar", False)):
            shown = options.run(options)
    except DeepCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return write(str(shown), int(getattr(shown, "exit_code", 0)))


def write(text: str, code: int = 0) -> int:
    """Print a text and return the exit code; a reader that stops early, such as `head`, causes no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    found = _Parser(
        prog=NAME,
        description="Faster diffusion pipelines without training. The commands, in the order in which one needs them:",
        epilog=f"Begin with `{NAME} try mini-sd`. `{NAME} COMMAND --help` has examples.",
    )
    commands = found.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add(commands)
    return found


@contextmanager
def clock(name: str, *, is_shown: bool) -> Iterator[None]:
    """Show on the terminal how long a command has been at work, once that is two seconds."""
    done, start = threading.Event(), time.monotonic()

    def show() -> None:
        while not done.wait(1):
            if (seconds := time.monotonic() - start) >= _SILENT_S:
                print(f"\r{name}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    shower = threading.Thread(target=show, daemon=True)
    if is_shown:
        shower.start()
    try:
        yield
    finally:
        done.set()
        if is_shown:
            shower.join()
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


if __name__ == "__main__":
    sys.exit(main())
