"""Bad input: one clear line on stderr and exit status 2, never a traceback."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class BadInput(Exception):
    """The user's input cannot be used. The message says what, where and what to do, in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `BadInput`."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see --help)")


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """A phrase naming the valid names closest to ``name``, to end an error message with."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, count, cutoff=0.5) or valid[:count]
    return "nearest: " + ", ".join(close)


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Run ``main``; turn `BadInput` into its line on stderr and exit status 2, Ctrl-C into one and status 130."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
