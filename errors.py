"""Bad input: one clear line on stderr and exit status 2, never a traceback."""

import argparse
import difflib
import errno
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NoReturn

DIVERGED = "training has diverged; lower --model_lr, --actor_lr or --value_lr and start a new run"


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; free space", file=sys.stderr)
        sys.exit(2)


def _quiet_interrupt(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, value, trace)


sys.excepthook = _quiet_interrupt  # Ctrl-C during the seconds of importing is no more than a line either
