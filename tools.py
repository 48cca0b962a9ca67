"""Helpers that every part uses: errors, files written whole, locks, image sizes, the stop signal, the progress bar.

This module imports neither torch nor anything of this project.
"""

import argparse
import contextlib
import csv
import difflib
import errno
import hashlib
import importlib.util
import io
import os
import re
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

PACKAGES = set(  # the names of requirements.txt's as they are imported
    "PIL av dm_control filelock gymnasium h5py imageio matplotlib metaworld mujoco numpy pyarrow robodesk ruamel scipy "
    "sklearn tensorboard torch tqdm".split()
)


def _one_line_for_users(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    """One line instead of a traceback: Ctrl-C or bad input during the imports, and a Python without the packages."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif isinstance(value, ModuleNotFoundError) and (value.name or "").split(".")[0] in PACKAGES:
        print(missing_package_line(value.name.split(".")[0]), file=sys.stderr, flush=True)
        os._exit(2)  # an exception's own status is 1
    elif issubclass(kind, BadInput):  # raised outside `exit_on_bad_input`: while a module is imported
        print(_error_line(value), file=sys.stderr)
        sys.exit(2)
    else:
        sys.__excepthook__(kind, value, trace)


def missing_package_line(package: str) -> str:
    """What to do if the running Python does not have a package of requirements.txt."""
    own, python = Path(__file__).resolve().parent / ".venv", Path(sys.executable)
    if own.resolve() == Path(sys.prefix).resolve() or not (own / "bin/python").exists():
        return f"error: {python} has no package {package}; `make setup` makes .venv with all packages"
    return (
        f"error: {python} has no package {package}; use .venv/bin/python in its place, or first type "
        f"`source .venv/bin/activate`"
    )


sys.excepthook = _one_line_for_users  # before all slow imports, so that Ctrl-C during them prints one line too

import numpy as np  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

LOCKED = "another process is writing"  # begins the message of a folder that is in use
LONGEST_NAME = 150  # characters of a folder's name, before a run's seed
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # environment of a process that computes little
DIVERGED = "training has diverged; lower --model_lr, --actor_lr or --value_lr and start a new run"


# Errors


class BadInput(Exception):
    """The user's input cannot be used. The message says what, where and what to do, in one line."""


class WorkerCrash(RuntimeError):
    """The process of an environment failed. The message has its traceback, or the signal or status it ended with."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `BadInput` instead of exiting. Values such as -5,3 are no options."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d[\d.,eE+-]*$")

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see --help)")


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """The valid names closest to ``name``, as the end of an error message."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, count, cutoff=0.5) or valid[:count]
    return "nearest: " + ", ".join(close)


def one_line(error: object) -> str:
    """The first sentence of an error's or another object's text, at most 120 characters."""
    return str(error).strip().split("\n")[0].split(". ")[0][:120]


def _error_line(error: object) -> str:
    return f"error: {' '.join(str(error).split())}"


def require(package: str, part: str, what: object) -> None:
    """Raises BadInput if ``package``, which ``what`` needs and ``requirements/{part}.txt`` has, is not installed."""
    if importlib.util.find_spec(package) is None:
        file = Path(__file__).parent / "requirements" / f"{part}.txt"
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        raise BadInput(f"{what} needs {package.replace('_', '-')}: pip install -r {file}")


def exit_on_bad_input(main: Callable[[], object]) -> None:
    """Run ``main`` and exit. `BadInput` becomes one line on stderr and status 2, Ctrl-C one line and status 130.

    A crash of a simulator's process is reported by its message alone, with status 1.

    If nobody reads the output any more (``| head``), nothing is printed and the status is 141, as of other programs.
    """
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BadInput as error:
        print(_error_line(error), file=sys.stderr)
        sys.exit(2)
    except WorkerCrash as crash:
        sys.exit(f"error: {crash}")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
            sys.exit(141)
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG) and error.filename:
            print(f"error: {error.filename}: {error.strerror}; give another path, or change it", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; free space", file=sys.stderr)
        sys.exit(2)


def _output_closed() -> bool:
    """Whether stdout is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


# Files


def user_path(text: str) -> Path:
    """A path on the command line. A shell leaves ``~`` in ``--out=~/data`` as it is."""
    return Path(text).expanduser()


def short_name(text: str) -> str:
    """A file name for ``text``; a long one is cut and gets a hash."""
    name = re.sub(r"[^\w.+=-]", "_", text)
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Run ``write`` on a temporary file beside ``path``, flush it to the disk and rename it to ``path``.

    Raises BadInput if there is no space, no permission, or another failure of the disk; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(
            f"{path.parent}: cannot write {path.name}: {reason}; free space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write at least one row atomically; all rows have the columns of the first. None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextlib.contextmanager
def lock_directory(folder: Path) -> Iterator[None]:
    """Make ``folder`` and keep other processes out of it, if its file system has locks.

    Temporary files that a killed process left in it are deleted. If the folder is new and still empty at the end, it is
    removed, with those above it that were made for it.
    Raises BadInput if another process has the lock, or if the folder cannot be written.
    """
    # A killed process releases this lock. The soft lock of filelock, a file, would remain and prevent resuming.
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(NotImplementedError):
            lock.acquire()
    except Timeout:
        raise BadInput(f"{LOCKED} {folder}; wait for it, or choose another place") from None
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}; choose another place") from None
    try:
        if lock.is_locked:
            delete_temporary_files(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            if new and {path.name for path in folder.iterdir()} == {".lock"}:
                (folder / ".lock").unlink()
                for path in new:
                    path.rmdir()
        lock.release()


def delete_temporary_files(folder: Path) -> None:
    """Delete what killed processes left of `write_atomically` in ``folder``, of which the caller has the lock.

    Folders directly in it are included. Files of processes that are still running stay: evaluate.py writes its video
    without the lock.
    """
    for path in [*folder.glob(".*.tmp"), *folder.glob("[!.]*/.*.tmp")]:
        number = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if number and (int(number[1]) == os.getpid() or not _is_running(int(number[1]))):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def directory_when_complete(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that is renamed to ``out`` when the ``with`` ends, and removed if it raises.

    ``out`` may be a link to a folder. An empty folder is removed too, and ``out`` is then not made. What an earlier,
    killed process left is deleted; if the renaming fails, the hidden folder stays.
    Raises BadInput if ``out`` is not empty, is the current folder or a mount point, cannot be written, or if another
    process writes it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not empty; choose a new folder, nothing was overwritten")
    place = out.resolve()
    if place == Path.cwd():
        raise BadInput(f"{out} is the current folder, which cannot be replaced; choose a new one")
    if place.is_mount():
        raise BadInput(f"{out} is a mount point, which cannot be replaced; choose a new folder in it")
    partial = place.with_name(f".{place.name}.partial")
    with lock_directory(partial):
        contents, complete = partial / "contents", False
        try:
            shutil.rmtree(contents, ignore_errors=True)
            contents.mkdir()
            yield contents
            if any(contents.iterdir()):
                complete = True
                contents.replace(place)
                complete = False
        except OSError as error:
            reason = error.strerror or one_line(error)
            if complete:
                raise BadInput(f"{out} cannot be made: {reason}; all of it is in {contents}, move that") from error
            raise BadInput(f"{out}: cannot be written: {reason}; free space or choose another place") from error
        finally:
            if not complete:
                shutil.rmtree(partial, ignore_errors=True)


# Images

CAMERA = 3  # channels of the images of one camera, RGB
MOST_CAMERAS = 8  # whose images are side by side in one array


def resize_images(image: np.ndarray, size: int) -> np.ndarray:
    """Images (N, H, W, 3) uint8, of several cameras (N, H, W, 3 K), as (N, size, size, ...). Shrinking averages over
    areas."""
    if image.shape[1:3] == (size, size):
        return image
    if (cameras := image.shape[3] // CAMERA) > 1:
        return np.concatenate([resize_images(part, size) for part in np.split(image, cameras, -1)], -1)
    frames = [Image.fromarray(frame).resize((size, size), Image.Resampling.BOX) for frame in image]
    return np.stack([np.asarray(frame) for frame in frames])


def side_by_side(image: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 3 K) of K cameras as pictures (..., H, K W, 3), the cameras from left to right."""
    return np.concatenate(np.split(image, image.shape[-1] // CAMERA, -1), -2)


# Stopping and progress


class StopRequest:
    """Ctrl-C or SIGTERM as a flag to look at between steps. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record the two signals inside the ``with``; the handlers before it are restored afterwards.

        Outside the main thread Python allows no signal handlers, so there it does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _record(self, number: int, _: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def progress_bar(total: int, label: str, **options: Any) -> tqdm:
    """A bar on stderr. A log file keeps every line, so there it prints one every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=label, **{"dynamic_ncols": True, "mininterval": interval, **options})


def multiples_crossed(count: int, stride: int, every: int) -> int:
    """How many multiples of ``every`` a counter crossed when its last ``stride`` brought it to ``count``."""
    return count // every - (count - stride) // every
