"""Which arrays of a data file are used, and the linear map from a dataset's actions to [-1, 1]."""

import difflib
import hashlib
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from replay.episode import CLIP_ADVICE, KEYS, channels_at
from replay.safe_read import READ_MEMORY
from tools import CAMERA, BadInput

RESERVED = (*KEYS, "is_first", "success")  # names of a stored episode's other arrays, which no state has
ROLES = ("image", "action", "reward", "done")
OPTIONS = tuple(f"{role}_key" for role in ROLES)
PLACES = ("current", "next")  # the values of ``action_at`` but "auto"

# Values up to this share of the range outside it are rounding, see `replay.episode.ACTION_ROUNDING`.
ROUNDING = 5e-4

SEVERAL = "or several: separate them by commas"
MOST_NAMES = 12  # names of arrays in an error message


@dataclass(frozen=True)
class DataMapping:
    """How the arrays of a data file become image, action, reward and discount.

    Attributes:
        image_key, action_key, reward_key: names of the arrays; "": the format's own. ``image_key`` may name several
            cameras, separated by commas.
        done_key: an array that is true where the task terminated (discount 0); "": the format's own.
        any_actions: accept actions outside [-1, 1]; an `ActionMap` rescales them later.
        clip_actions: clip actions to [-1, 1], as ``dataset.json`` of data says whose simulator clipped them.
        image_size: formats resize images that are larger to this size while they read them.
        read_memory: limit in GiB of what is in memory at once while a file is read.
        read_seconds: time limit for a slice of an episode, or for the list of a file's episodes, where a separate
            process reads the file; None: `replay.reader_process.SECONDS`.
        action_at: "current": row t has the action taken at image t, and what came of it; "next": row t has the action
            that led to image t, as `replay.episode` wants it; "auto": not given, which is next.
        split: the part of the data that is used, by the name that its files have for it; "": all.
        labelled: rewards come from `replay.labels`, which `DataFile` applies: those of the files are not read, and
            need not exist. Formats return zeros.
        list_only: episodes are only listed, so that no array has to be chosen or to exist.
        state_keys: names of arrays of low-dimensional states, separated by commas, see `replay.observations`.
        usual_camera: the camera that a file must have if none is chosen; "": any.
    """

    image_key: str = ""
    action_key: str = ""
    reward_key: str = ""
    done_key: str = ""
    any_actions: bool = False
    image_size: int | None = None
    read_memory: float = READ_MEMORY
    read_seconds: int | None = None
    clip_actions: bool = False
    action_at: str = "auto"
    split: str = ""
    labelled: bool = False
    list_only: bool = False
    state_keys: str = ""
    usual_camera: str = ""

    @property
    def cameras(self) -> list[str]:
        """The cameras of ``image_key``."""
        return listed_names(self.image_key)

    @property
    def states(self) -> list[str]:
        """The names of ``state_keys``."""
        return listed_names(self.state_keys)

    def check_lists(self) -> None:
        """Raise BadInput if a camera or a state is given twice, or a state is called like another array."""
        check_listed("image_key", self.cameras)
        check_listed("state_keys", self.states, RESERVED)

    @property
    def keys(self) -> dict[str, str]:
        """The names that were given, by role."""
        found = {role: key for role, option in zip(ROLES, OPTIONS, strict=True) if (key := getattr(self, option))}
        return found | ({"image": ",".join(self.cameras)} if self.cameras else {})

    @property
    def changes_episodes(self) -> bool:
        """Whether episodes differ from those that the format's own names give."""
        moved = self.action_at == "current"
        return bool(self.keys or self.states or self.split) or self.any_actions or self.clip_actions or moved

    def names(self, defaults: Mapping[str, str], available: Iterable[str], where: object) -> dict[str, str]:
        """The name of the array of each role in ``defaults``, which has the format's own names.

        That of the reward is "" if it comes from labels. That of several cameras is their names, separated by commas.

        Raises:
            BadInput: an array whose name was given is not ``available``, or is given twice.
        """
        available = list(available)
        given = [(f"{role}_key", name) for role, key in self.keys.items() if role != "image" for name in [key]]
        given += [("image_key", name) for name in self.cameras] + [("state_keys", name) for name in self.states]
        for option, name in given:
            if name not in available:
                raise BadInput(f"{where}: no array {name!r} (--{option}); there are: {by_likeness(name, available)}")
        own = defaults | ({"reward": ""} if self.labelled else {})
        return {role: self.keys.get(role) or name for role, name in own.items()}

    def with_rewards(self, episode: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """An episode of ``rows`` rows, with zeros in place of its rewards if they come from labels."""
        return episode | {"reward": np.zeros(rows, np.float32)} if self.labelled else episode

    def in_rows(self, episode: dict[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
        """An episode as in its file, with the rows of its arrays as `replay.episode` wants them; see ``action_at``."""
        image = episode.get("image")
        shape = getattr(next(iter(image.values())) if isinstance(image, dict) else image, "shape", ())
        if not shape:  # without images, the validation says what is missing
            return episode
        episode = self.with_rewards(episode, shape[0])
        return moved_down(episode, shape[0], where) if self.action_at == "current" else episode

    def digest(self) -> str:
        """A short name for what this mapping changes; "" for nothing."""
        if not self.changes_episodes:
            return ""
        shift = ("current",) * (self.action_at == "current")
        clipped = ("clipped",) * self.clip_actions
        part = (f"split {self.split}",) if self.split else ()
        states = (("states", *self.states),) if self.states else ()
        text = repr((sorted(self.keys.items()), self.any_actions, *clipped, *shift, *part, *states))
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


PLAIN = DataMapping()


def listed_names(text: str) -> list[str]:
    """The names of a text that separates them by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_listed(option: str, names: list[str], reserved: Container[str] = ()) -> None:
    """Raise BadInput if one of the names of an option is given twice, or is ``reserved``."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise BadInput(f"--{option}: {name} is given twice; remove one")
        if name in reserved:
            raise BadInput(f"--{option}: {name} is no state; remove it, or give the array another name in the files")


def by_likeness(name: str, available: Iterable[str]) -> str:
    """Names, the one that is most like ``name`` first, as text. Those that contain it come before all others."""

    def likeness(other: str) -> tuple[bool, float]:
        return name.lower() in other.lower(), difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    listed = sorted(sorted(available), key=likeness, reverse=True)
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    shown = [name if name.isprintable() else repr(name) for name in listed[:MOST_NAMES]]  # one line in any case
    return (", ".join(shown) or "none") + more


def is_picture(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether an array of this shape can be the images of an episode, in colour or grey, see `replay.episode`."""
    if dtype != np.uint8 or len(shape) not in (3, 4):
        return False
    if len(shape) == 3:
        return min(shape[1:]) > 3
    return channels_at(shape) is not None


def has_colours(shape: tuple[int, ...]) -> bool:
    """Whether an array of images of this shape has colours."""
    return len(shape) == 4 and (axis := channels_at(shape)) is not None and shape[axis] >= CAMERA


def require_one_camera(name: str, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise BadInput that lists all arrays of images if there are several, for an episode without ``image_key``.

    Beside an array in colour that has the format's own name, grey ones are masks or depth, not cameras.

    Args:
        name: the format's own name of the images; "" if it has none, or none is in the file.
        shapes: shape of each array of images, by its name.
        where: file or place.
    """
    own_shape = shapes.get(name, ())
    cameras = [
        other for other, shape in shapes.items() if other == name or has_colours(shape) or not has_colours(own_shape)
    ]
    if len(cameras) > 1:
        listed = by_likeness(name or "image", cameras)
        raise BadInput(f"{where}: {len(cameras)} arrays of images; choose one with --image_key: {listed} ({SEVERAL})")


def as_numbers(array: np.ndarray) -> np.ndarray:
    """Booleans as float32; other arrays as they are."""
    return array.astype(np.float32) if array.dtype == bool else array


def discount_of(done: np.ndarray, where: object) -> np.ndarray:
    """1 - done as float32, for an array (N,) or (N, 1) that is true where the task terminated.

    Raises:
        BadInput: values other than 0 and 1.
    """
    done = as_numbers(done).reshape(len(done), -1)
    if done.shape[1] != 1 or not np.isin(done, (0, 1)).all():
        raise BadInput(f"{where}: the array of --done_key must be true or false (1 or 0) in each row")
    return (1 - done[:, 0]).astype(np.float32)


def renamed(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], where: object) -> dict[str, np.ndarray]:
    """Arrays with the names of an episode, then those without a role.

    Args:
        arrays: by their names in the file.
        names: the array of each role, see `DataMapping.names`; one of "" is missing.

    Raises:
        BadInput: the array of the role ``done`` has values other than 0 and 1.
    """
    episode = {}
    for role, name in names.items():
        cameras = name.split(",")
        if role == "image" and len(cameras) > 1:
            episode[role] = {camera: arrays[camera] for camera in cameras}
        elif role != "done" and name in arrays:
            episode[role] = arrays[name] if role == "image" else as_numbers(arrays[name])
    if names.get("done") in arrays:
        episode["discount"] = discount_of(arrays[names["done"]], where)
    taken = {*names.values(), *names["image"].split(","), *episode}
    return episode | {name: array for name, array in arrays.items() if name not in taken}


def moved_down(arrays: Mapping[str, np.ndarray], images: int, where: object) -> dict[str, np.ndarray]:
    """Arrays whose row t has the action taken AT image t and what came of it, each moved to row t + 1.

    Row 0 becomes the reset. Where an array has a row for the last image too, the action in it led to no image and is
    left out. Its reward, in some data the only one, is added to the last row's, so returns stay as they are; the last
    ``discount`` counts there too.

    Args:
        arrays: action, reward and, if the data has it, discount, of ``images`` or ``images`` - 1 rows; others stay.

    Raises:
        BadInput: an array has another number of rows.
    """
    found = dict(arrays)
    for key in (key for key in ("action", "reward", "discount") if key in arrays):
        array = as_numbers(arrays[key])
        if array.ndim == 0 or len(array) not in (images - 1, images):
            raise BadInput(
                f"{where}: {key} of shape {array.shape} for {images} images; where actions are those taken at the "
                f"images, there is one at each, or at each but the last"
            )
        reset = np.ones_like(array[:1]) if key == "discount" else np.zeros_like(array[:1])
        found[key] = np.concatenate([reset, array[: images - 1]])
        if len(array) == images > 1 and key == "reward":
            found[key][-1] += array[-1]
        if len(array) == images > 1 and key == "discount":
            found[key][-1] = np.minimum(found[key][-1], array[-1])
    return found


# The range of the actions


@dataclass(frozen=True)
class ActionMap:
    """The linear map from a dataset's actions, ``low`` to ``high`` in each of A dimensions, to [-1, 1].

    A dimension with equal bounds is 0 for the agent, and always that value in the dataset's units.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions (..., A) in the dataset's units as float32 in [-1, 1]."""
        low, high = np.array(self.low), np.array(self.high)
        span = np.where(high > low, high - low, 1.0)
        scaled = np.where(high > low, 2 * (action.astype(np.float64) - low) / span - 1, 0.0)
        return np.clip(scaled, -1, 1).astype(np.float32)

    def as_dict(self) -> dict[str, list[float]]:
        return {"low": list(self.low), "high": list(self.high)}

    def contains(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether actions with these extremes, each (A,), are in the range, but for rounding."""
        margin = ROUNDING * (np.array(self.high) - np.array(self.low))
        return bool((low >= self.low - margin).all() and (high <= self.high + margin).all())


def parse_range(text: str) -> list[float] | None:
    """The numbers of ``--action_range``; None for "" and "data".

    Raises:
        BadInput: not ``data``, two numbers or pairs of numbers, or a pair that is not increasing.
    """
    if text in ("", "data"):
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2 or not all(map(math.isfinite, numbers)):
        expected = "data, LOW,HIGH, or a pair LOW,HIGH for each dimension, like -5,3"
        raise BadInput(f"--action_range {text}: give {expected}")
    for low, high in zip(numbers[::2], numbers[1::2], strict=True):
        if low >= high:
            raise BadInput(f"--action_range {text}: {low:g} is not below {high:g}; give the lower bound first")
    return numbers


def action_map(text: str, low: np.ndarray, high: np.ndarray) -> ActionMap | None:
    """The map of ``--action_range``, for a dataset whose actions have these extremes, each (A,). None for "".

    Raises:
        BadInput: the number of numbers does not fit the action size A; see also `parse_range`.
    """
    numbers = parse_range(text)
    if text == "":
        return None
    if numbers is None:
        return ActionMap(tuple(map(float, low)), tuple(map(float, high)))
    if len(numbers) == 2:
        numbers *= len(low)
    if len(numbers) != 2 * len(low):
        raise BadInput(
            f"--action_range {text}: {len(numbers)} numbers for actions of size {len(low)}; give data, LOW,HIGH, or "
            f"{2 * len(low)} numbers, a pair for each dimension"
        )
    return ActionMap(tuple(numbers[::2]), tuple(numbers[1::2]))


def outside_range(name: str, extremes: tuple[Iterable[float], Iterable[float]], text: str) -> str:
    """That an episode's actions, with these smallest and largest values, are not in the range ``text``."""
    ranges = " ".join(f"[{low:.4g}, {high:.4g}]" for low, high in zip(*extremes, strict=True))
    return f"{name}: actions {ranges} are outside --action_range {text}; give a wider one, or data; {CLIP_ADVICE}"


def recorded_map(description: dict, size: int, where: object) -> ActionMap | None:
    """The map that ``dataset.json`` of a converted dataset records for actions of this size; None if there is none.

    Raises:
        BadInput: it is not a map.
    """
    recorded = description.get("action_map")
    if recorded is None:
        return None
    try:
        found = ActionMap(tuple(map(float, recorded["low"])), tuple(map(float, recorded["high"])))
        if len(found.low) != size or len(found.high) != size:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise BadInput(
            f"{where}/dataset.json: action_map is not {{low, high}} with {size} numbers each; correct or remove it"
        ) from None
    return found
