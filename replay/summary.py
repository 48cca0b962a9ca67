"""The summary of a dataset: statistics, a histogram of returns, a contact sheet of frames."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replay.action_rows import action_rows_note
from replay.cache import may_write
from replay.check import outside_of, unusual_sizes
from replay.data_files import MOST_TRIED, DataFile
from replay.description import read_description
from replay.endings import Ending, ends_matter, why
from replay.episode import ACTION_ROUNDING, CLIP_ADVICE, action_extremes, camera_shapes
from replay.episode_numbers import numbered, numbers_line
from replay.mapping import RESERVED, ActionMap, action_map, by_likeness
from replay.observations import is_state, names_of_cameras
from replay.slices import SlicedArray, slices
from replay.store import LARGE_STATE
from tools import BadInput, progress_bar, side_by_side, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_EPISODES, SHEET_FRAMES = 8, 10
SHEET_SIZE = 128  # pixels of the frames that are decoded from videos

# Settings that the images depend on. They are printed even if the dataset does not record them.
SETTINGS = ("task", "render", "flip", "camera", "action_repeat")


@dataclass
class Summary:
    """Statistics, updated one episode at a time, so that a dataset of any size fits in memory.

    Attributes:
        numbers: of the episodes, see `ListedEpisode`; those that cannot be used are included.
        returns, lengths: of each episode; lengths in agent steps.
        action_low, action_high: (A,) smallest and largest value of each component, without row 0.
        reward_low, reward_high: smallest and largest reward, without row 0.
        image_sizes: number of episodes by (height, width), "grey" too if they have no colours; of several cameras all.
        states: smallest value, largest value and size of each low-dimensional state, by its name.
        cameras: the names of several cameras, left to right; `summarize` gives them.
        reset_actions: number of episodes with an action in row 0.
        idle_starts: number of episodes whose first action, that of row 1, is zeros.
        action_map: the map of the actions to [-1, 1], if they are not in this range.
        terminal: number of episodes that end with discount 0.
        early: number of episodes with discount 0 in an earlier row.
        endings: of each episode.
        frames: evenly spaced frames (SHEET_FRAMES, H, W, 3) of some episodes, each with the episode's name and return.
    """

    numbers: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    reward_low: float = np.inf
    reward_high: float = -np.inf
    image_sizes: dict[str, int] = field(default_factory=dict)
    states: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    cameras: list[str] = field(default_factory=list)
    reset_actions: int = 0
    idle_starts: int = 0
    action_map: ActionMap | None = None
    terminal: int = 0
    early: int = 0
    endings: list[Ending] = field(default_factory=list)
    frames: list[tuple[np.ndarray, str, float]] = field(default_factory=list)

    def add(self, episode: dict, name: str, *, show: bool, states: Sequence[str] = ()) -> None:
        """Add a validated episode with ``states``; keep some of its frames if ``show``. ``name``: where it is.

        Raises BadInput if its images cannot be read; it is not added then.
        """
        reward = episode["reward"]
        rows = np.linspace(0, len(reward) - 1, SHEET_FRAMES).astype(int) if show else np.zeros(0, int)
        frames = _pick(episode["image"], rows)
        self.returns.append(float(reward.sum(dtype=np.float64)))
        self.lengths.append(len(reward) - 1)
        low, high = action_extremes(episode)
        self.reset_actions += bool(episode["action"][0].any())
        self.idle_starts += not episode["action"][1].any()
        self.action_low = low if self.action_low is None else np.minimum(self.action_low, low)
        self.action_high = high if self.action_high is None else np.maximum(self.action_high, high)
        self.reward_low = min(self.reward_low, float(reward[1:].min()))
        self.reward_high = max(self.reward_high, float(reward[1:].max()))
        shapes = camera_shapes(episode)
        size = " + ".join(f"{height}x{width}{' grey' * (channels == 1)}" for height, width, channels in shapes)
        self.cameras = self.cameras or [""] * len(shapes)
        for key in states:
            low, high, _ = self.states.get(key, (np.inf, -np.inf, 0))
            values = episode[key]
            self.states[key] = min(low, float(values.min())), max(high, float(values.max())), values.shape[1]
        self.image_sizes[size] = self.image_sizes.get(size, 0) + 1
        self.terminal += bool(episode["discount"][-1] == 0)
        self.early += not episode["discount"][:-1].all()
        self.endings.append(Ending.of(reward, episode["discount"]))
        if show:
            self.frames.append((side_by_side(np.stack(frames)), name, self.returns[-1]))

    def lines(self, description: dict, batch_length: int) -> list[str]:
        """The statistics and the description as text, one line each. ``batch_length`` is that of a run, in rows."""
        sizes = ", ".join(f"{size} ({count} episodes)" for size, count in self.image_sizes.items())
        ranges = " ".join(
            f"[{low:.3f}, {high:.3f}]" for low, high in zip(self.action_low, self.action_high, strict=True)
        )
        settings = dict.fromkeys(SETTINGS, "not recorded") | description
        recorded = [f"{key:<13} {value}" for key, value in settings.items() if isinstance(value, str | int | float)]
        rescaled = [f"action map    {self.map_text()} to [-1, 1]"] if self.action_map else []
        advice = " (to train: --pred_discount True)" * bool(self.terminal)
        return [
            f"episodes      {len(self.returns)}, of which {self.terminal} end with discount 0{advice}",
            f"numbers       {numbers_line(self.numbers)}",
            f"steps         {sum(self.lengths)}",
            f"return        {quantiles(self.returns)}",
            f"length        {quantiles(self.lengths)}",
            f"actions       {len(self.action_low)}, ranges {ranges}",
            *rescaled,
            f"reward        [{self.reward_low:.4g}, {self.reward_high:.4g}] a step",
            f"image size    {sizes}",
            *[f"cameras       {', '.join(self.cameras)}"] * bool(self.cameras),
            *(f"state         {key}: {size} in [{a:.4g}, {b:.4g}]" for key, (a, b, size) in self.states.items()),
            *self.sampling(batch_length),
            *recorded,
        ]

    def sampling(self, batch_length: int) -> list[str]:
        """What a run with sequences of ``batch_length`` rows draws them from, see docs/datasets.md."""
        rows = [steps + 1 for steps in self.lengths]
        short = [count for count in rows if count < batch_length]
        joined = f", {sum(short)} in {len(short)} episodes shorter than batch_length {batch_length}, which are joined"
        often = "sampled as often as other rows" if ends_matter(self.endings) else "sampled less often than other rows"
        return [
            f"rows used     {sum(rows)} of {sum(rows)}{joined if short else ''}",
            f"ends          {often}: {why(self.endings)}",
        ]

    def warnings(self, directory: Path, action_at: str = "auto") -> list[str]:
        """What is unusual about the actions and discounts of the dataset in ``directory``, one line each.

        ``action_at`` is that of the files' mapping.
        """
        lines = []
        if self.action_map is None and max(-self.action_low.min(), self.action_high.max()) > 1 + ACTION_ROUNDING:
            lines.append(f"actions outside [-1, 1]: to train, give --action_range data, or its LOW,HIGH; {CLIP_ADVICE}")
        counts = self.reset_actions, self.idle_starts, len(self.returns)
        if note := action_rows_note(action_at, *counts, directory):
            lines.append(note)
        for key, (low, high, _) in self.states.items():
            if max(-low, high) > LARGE_STATE:
                size = f"has values up to {max(-low, high):.4g}"
                lines.append(f"state {key} {size}: train with --state_standardize True (docs/senses.md#sizes)")
        if self.early:
            lines.append(
                f"{self.early} episode(s) with discount 0 before the last row: a termination is an episode's end; "
                "write each episode by itself"
            )
        return lines

    def map_text(self) -> str:
        """The range that is rescaled to [-1, 1], of each dimension."""
        pairs = zip(self.action_map.low, self.action_map.high, strict=True)
        return " ".join(f"[{low:.4g}, {high:.4g}]" for low, high in pairs)

    def draw(self, folder: Path) -> list[Path]:
        """Draw the two pictures into a folder and return their paths.

        Raises:
            BadInput: they cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{folder}: cannot write the pictures: {error.strerror}; give another --out") from error
        paths = [folder / "returns.png", folder / "contact_sheet.png"]
        self.draw_returns(paths[0])
        self.draw_sheet(paths[1])
        return paths

    def draw_returns(self, path: Path) -> None:
        """Write a histogram of the episode returns as a PNG file, atomically."""
        figure = new_figure(6, 3.5)
        axes = figure.subplots()
        axes.hist(self.returns, bins=min(40, max(5, len(self.returns) // 3)))
        mean = float(np.mean(self.returns))
        axes.axvline(mean, color="black", linestyle="--")
        axes.set(xlabel="episode return", ylabel="episodes", title=f"{len(self.returns)} episodes, mean {mean:.4g}")
        axes.yaxis.get_major_locator().set_params(integer=True)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))

    def draw_sheet(self, path: Path) -> None:
        """Write frames of some episodes, one episode a row in the order of the files, as a PNG file, atomically."""
        cameras = max(len(self.cameras), 1)
        figure = new_figure(SHEET_FRAMES * cameras + 0.2, len(self.frames) * 1.3 + 0.4)
        grid = figure.subplots(len(self.frames), 1, squeeze=False)[:, 0]
        for axes, (frames, name, total) in zip(grid, self.frames, strict=True):
            gap = max(frames.shape[2] // cameras // 16, 1)
            apart = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
            axes.imshow(np.concatenate(list(apart), axis=1)[:, :-gap], interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(f"{name.rpartition('/')[2]}: return {total:.4g}", loc="left", fontsize=8, pad=3)
        cameras = f"; cameras, left to right: {', '.join(self.cameras)}" if self.cameras else ""
        figure.suptitle(f"evenly spaced frames of each episode, first to last{cameras}", fontsize=10)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def new_figure(width: float, height: float) -> "Figure":
    """A figure of a size in inches. Loads matplotlib, which takes a second and which other commands do not need."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _pick(image: np.ndarray | SlicedArray, rows: np.ndarray) -> list[np.ndarray]:
    """Some rows of the images, of which all are read."""
    found, first = [], 0
    for piece in slices(image):
        found += [piece[row - first].copy() for row in rows if first <= row < first + len(piece)]
        first += len(piece)
    return found


def summarize(files: list[DataFile], action_range: str = "") -> tuple[Summary, list[str]]:
    """Read every episode of a dataset. Actions are in the dataset's units.

    ``action_range``: see `replay.mapping.parse_range`.

    Returns:
        The summary, and one line for each file or episode that cannot be used.

    Raises:
        BadInput: the episodes differ in action size.
    """
    episodes, problems = numbered(files)
    summary, show = Summary([episode.number for episode in episodes]), sheet_episodes(len(episodes))
    mapping = files[0].mapping
    sizes: dict[str, int] = {}
    with progress_bar(len(episodes), "reading", unit="episode", disable=None) as bar:
        for index, listed in enumerate(episodes):
            bar.update()
            place = listed.place
            try:
                episode = listed.load()
                sizes[place] = episode["action"].shape[1]
                extremes = {place: action_extremes(episode)}
                if outside := outside_of(action_range, extremes):
                    problems += outside
                elif sizes[place] == next(iter(sizes.values())):
                    where = f"{place} (episode {listed.number})"
                    summary.add(episode, where, show=index in show, states=mapping.states)
            except BadInput as error:
                problems.append(str(error))
    if unusual := unusual_sizes(sizes):
        raise BadInput(unusual[0] + (f" (and {len(unusual) - 1} more)" if len(unusual) > 1 else ""))
    described = read_description(files[0].path)
    summary.cameras = names_of_cameras(mapping.cameras, described, max(len(summary.cameras), 1))
    if summary.returns:
        summary.action_map = action_map(action_range, summary.action_low, summary.action_high)
    return summary, problems


def unused_states(files: list[DataFile]) -> str:
    """Names that ``--state_keys`` could add, with the numbers of a row, of the first episode that can be read."""
    for file in files[:MOST_TRIED]:
        with suppress(BadInput):
            _, load = file.episodes(raw=True, sliced=True)[0]
            episode = load()
            rows, taken = len(episode["image"]), {*RESERVED, *file.mapping.states}
            found = [
                f"{name} ({math.prod(array.shape[1:])})"
                for name, array in episode.items()
                if name not in taken
                and is_state(array.shape, array.dtype)
                and len(array) == rows
                and array.dtype != bool
            ]
            return by_likeness("", found) if found else ""
    return ""


def picture_folder(directory: Path) -> Path:
    """Where the pictures of a dataset are drawn: beside its data, or the current folder if that is read-only."""
    return directory if directory.is_dir() and may_write(directory) else Path()


def sheet_episodes(count: int) -> set[int]:
    """Indices of the episodes on the contact sheet, of ``count``: the first, the last, and evenly spaced ones."""
    return set(np.linspace(0, count - 1, min(count, SHEET_EPISODES)).astype(int).tolist())


def quantiles(values: Iterable[float]) -> str:
    """Smallest value, 10 % quantile, median, 90 % quantile, largest value and mean, as text."""
    values = np.asarray(values, np.float64)
    points = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    names = ("min", "10%", "median", "90%", "max")
    listed = " ".join(f"{name} {point:.5g}" for name, point in zip(names, points, strict=True))
    return f"{listed} mean {values.mean():.5g}"
