"""What is in a dataset: figures in words, a histogram of returns, a contact sheet."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools import write_atomically

SHEET_EPISODES, SHEET_FRAMES = 8, 10

# What a reader must know of how the images came to be, printed also where the data does not say.
SETTINGS = ("task", "render", "flip", "camera", "action_repeat")


@dataclass
class Summary:
    """Figures gathered one episode at a time, so that a set of any size fits in memory.

    Attributes:
        returns, lengths: of each episode; lengths in agent steps.
        action_low, action_high: (A,) smallest and largest value of each component, row 0 left out.
        reward_low, reward_high: row 0 left out.
        image_sizes: (height, width) and how many episodes have it.
        terminal: episodes that end with discount 0.
        frames: of some episodes, evenly spaced, each (SHEET_FRAMES, H, W, 3), and the episode's return.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    reward_low: float = np.inf
    reward_high: float = -np.inf
    image_sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    terminal: int = 0
    frames: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def add(self, episode: dict, *, show: bool) -> None:
        """Count a checked episode in; keep some of its frames if ``show``."""
        reward, action = episode["reward"], episode["action"][1:]
        self.returns.append(float(reward.sum(dtype=np.float64)))
        self.lengths.append(len(reward) - 1)
        low, high = action.min(0), action.max(0)
        self.action_low = low if self.action_low is None else np.minimum(self.action_low, low)
        self.action_high = high if self.action_high is None else np.maximum(self.action_high, high)
        self.reward_low = min(self.reward_low, float(reward[1:].min()))
        self.reward_high = max(self.reward_high, float(reward[1:].max()))
        size = episode["image"].shape[1:3]
        self.image_sizes[size] = self.image_sizes.get(size, 0) + 1
        self.terminal += bool(episode["discount"][-1] == 0)
        if show:
            rows = np.linspace(0, len(reward) - 1, SHEET_FRAMES).astype(int)
            self.frames.append((episode["image"][rows], self.returns[-1]))

    def lines(self, description: dict) -> list[str]:
        """The summary in words, one fact a line."""
        sizes = ", ".join(f"{height}x{width} ({count} episodes)" for (height, width), count in self.image_sizes.items())
        ranges = " ".join(
            f"[{low:.3f}, {high:.3f}]" for low, high in zip(self.action_low, self.action_high, strict=True)
        )
        told = dict.fromkeys(SETTINGS, "not recorded") | description
        said = [f"{key:<14}{value}" for key, value in told.items() if isinstance(value, str | int | float)]
        return [
            f"episodes      {len(self.returns)}, of which {self.terminal} end with discount 0",
            f"steps         {sum(self.lengths)}",
            f"return        {quantiles(self.returns)}",
            f"length        {quantiles(self.lengths)}",
            f"actions       {len(self.action_low)}, ranges {ranges}",
            f"reward        [{self.reward_low:.4g}, {self.reward_high:.4g}] a step",
            f"image size    {sizes}",
            *said,
        ]

    def draw_returns(self, path: Path) -> None:
        """A histogram of episode returns, as PNG."""
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.hist(self.returns, bins=min(40, max(5, len(self.returns) // 3)))
        mean = float(np.mean(self.returns))
        axes.axvline(mean, color="black", linestyle="--")
        axes.set(xlabel="episode return", ylabel="episodes", title=f"{len(self.returns)} episodes, mean {mean:.4g}")
        axes.yaxis.get_major_locator().set_params(integer=True)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))

    def draw_sheet(self, path: Path) -> None:
        """Frames of some episodes, one episode a row, in the order of the files, as PNG."""
        figure = Figure(figsize=(SHEET_FRAMES + 1.2, len(self.frames) * 1.08 + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(self.frames), 1, squeeze=False)[:, 0]
        for axes, (frames, total) in zip(grid, self.frames, strict=True):
            axes.imshow(np.concatenate(list(frames), axis=1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_ylabel(f"return\n{total:.4g}", rotation=0, ha="right", va="center")
        grid[0].set_title("evenly spaced frames, first to last", fontsize=10)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def shown(count: int) -> set[int]:
    """Which of ``count`` episodes the contact sheet shows: the first, the last, and evenly between."""
    return set(np.linspace(0, count - 1, min(count, SHEET_EPISODES)).astype(int).tolist())


def quantiles(values: Iterable[float]) -> str:
    """Smallest, 10 %, median, 90 %, largest and mean, in words."""
    values = np.asarray(values, np.float64)
    points = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    names = ("min", "10%", "median", "90%", "max")
    told = " ".join(f"{name} {point:.5g}" for name, point in zip(names, points, strict=True))
    return f"{told} mean {values.mean():.5g}"
