"""Where a run is: a bar for all of it and one for the running phase; in a log file, a line now and then."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

from config import Config
from tools import progress_bar
from training.plan import Clock, amount, iterations_of

REDRAW = 0.2  # seconds between two states of the bars
LINES = 100  # in the log file of a run, about, beside one for each phase
LINE_SECONDS = (10.0, 300.0)  # between two of them, at least and at most
WHOLE = "{desc}: {percentage:3.0f}%|{bar:20}| {unit}"
PHASE = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"


def clock_time(seconds: float) -> str:
    """``0:04:10``; with days ``2 days, 3:00:00``."""
    return str(timedelta(seconds=round(seconds)))


class RunBars:
    """The bars of a run on a terminal. In a log file their text, as a line at the end of a phase and sometimes before.

    The bar of the whole run is drawn from its first phase on, until `close`.
    """

    def __init__(self, clock: Clock, config: Config):
        self.clock, self.config = clock, config
        self.began = self.line_at = time.monotonic()
        self.whole: tqdm | None = None
        self.shown = 0.0  # the largest share of the run that was shown

    @contextmanager
    def phase(self, index: int, name: str, done: int = 0, begun: int = 0) -> Iterator["PhaseBar"]:
        """The bar of phase ``index``, of which ``done`` iterations are finished.

        ``begun``: the target's iterations before the phase, see `amount`.
        """
        bar = PhaseBar(self, index, name, done, begun)
        try:
            yield bar
            bar.finish()
        finally:
            bar.close()

    def write(self, line: str) -> None:
        """Print a line, above the bars."""
        tqdm.write(line, file=sys.stderr)

    def whole_text(self, index: int, done: int) -> str:
        """Where the run is, and the time left as far as it is known."""
        left = self.clock.left(index, done)
        passed = f"phase {index + 1} of {len(self.clock.phases)}, {clock_time(time.monotonic() - self.began)} passed"
        return passed + ("" if left is None else f", about {clock_time(left)} left")

    def share(self, index: int, done: int) -> float:
        """`Clock.share`, but never less than before, also if the phases to come turn out slower."""
        self.shown = max(self.shown, self.clock.share(index, done))
        return self.shown

    def draw(self, index: int, done: int) -> None:
        """Draw the bar of the whole run."""
        if self.whole is None:
            text = self.whole_text(index, done)
            self.whole = progress_bar(1.0, "whole run", position=0, unit=text, bar_format=WHOLE)
        self.whole.unit, self.whole.n = self.whole_text(index, done), self.share(index, done)
        self.whole.refresh()

    def line_is_due(self) -> bool:
        """Whether a log file gets a line now."""
        waited = time.monotonic() - self.line_at
        shortest, longest = LINE_SECONDS
        if waited < shortest:
            return False
        return waited >= min(self.clock.total() / LINES, longest)

    def close(self) -> None:
        if self.whole is not None:
            self.whole.close()
            self.whole = None


class PhaseBar:
    """The bar of one phase, of `RunBars.phase`. It times the phase's iterations for the clock."""

    def __init__(self, bars: RunBars, index: int, name: str, done: int, begun: int):
        self.bars, self.index, self.name, self.done, self.begun = bars, index, name, done, begun
        self.phase = bars.clock.phases[index]
        self.length = iterations_of(self.phase, bars.config)
        self.total, self.unit = amount(self.phase, bars.config, self.length, begun)
        self.values: Mapping[str, str] = {}
        self.began = self.at = self.drawn_at = time.monotonic()
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            bars.draw(index, done)
            options = {"position": 1, "leave": False, "unit": self.unit, "bar_format": PHASE}
            self.bar = progress_bar(self.total, name, initial=self._count(), **options)

    def update(self, iterations: int) -> None:
        """Count ``iterations`` that are done, and draw or print if it is time."""
        now = time.monotonic()
        self.bars.clock.record(self.phase, now - self.at, iterations)
        self.at, self.done = now, self.done + iterations
        if now - self.drawn_at < REDRAW:
            return
        self.drawn_at = now
        if self.bar is not None:
            self.bars.draw(self.index, self.done)
            self.bar.n = self._count()
            self.bar.set_postfix(self.values, refresh=True)
        elif self.bars.line_is_due():
            self._print(f"{self._count():,} of {self.total:,} {self.unit}")

    def finish(self) -> None:
        """Print the line of a finished phase."""
        if self.bar is not None:
            self.bars.draw(self.index, self.length)  # an evaluation may end before its longest length
        self._print(f"{self._count():,} {self.unit} in {clock_time(time.monotonic() - self.began)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _count(self) -> int:
        """What is done, in the unit of the bar."""
        return amount(self.phase, self.bars.config, min(self.done, self.length), self.begun)[0]

    def _print(self, state: str) -> None:
        values = "".join(f", {key}={value}" for key, value in self.values.items())
        whole = f"whole run {self.bars.share(self.index, self.done):.0%}"
        where = "" if self.bar is not None else f"; {whole}, {self.bars.whole_text(self.index, self.done)}"
        self.bars.write(f"{self.name}: {state}{values}{where}")
        self.bars.line_at = time.monotonic()
