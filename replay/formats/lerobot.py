"""lerobot: LeRobot datasets of format v2.0, v2.1 and v3.0 in a local folder, read with PyArrow and PyAV.

Action t was taken AT frame t, and reward t came with the next frame. An episode of T frames has T rows here: row t + 1
has action t and reward t. The last action has no next frame and is left out. The last reward, often the only one, is
added to that of the last row, so returns stay as they are; the last ``done`` counts there too.
"""

from functools import partial
from pathlib import Path

import numpy as np

from replay.formats import TASK, Format, LabelledLoaders
from replay.labels import no_rewards
from replay.lerobot_meta import (
    CAMERA_TYPES,
    INFO,
    EpisodePlace,
    cameras,
    is_depth,
    metadata_files,
    read_info,
    read_places,
)
from replay.mapping import PLAIN, SEVERAL, DataMapping, as_numbers, by_likeness, discount_of, moved_down
from replay.observations import camera_names, finished
from replay.safe_read import safe_read
from replay.tables import column_array, read_parquet, require_pyarrow, require_values
from replay.video import Frames, read_images, read_video
from tools import BadInput

ACTION, REWARD, DONE = "action", "next.reward", "next.done"
STATE = "observation."  # low-dimensional observations begin with it


def find_below(directory: Path) -> list[Path]:
    """The files that list the episodes of the LeRobot dataset in a folder; none if it is not one.

    Raises:
        BadInput: one without its description, or with a damaged one.
    """
    if not (directory / INFO).is_file():
        if any((directory / other).exists() for other in ("meta/episodes", "meta/episodes.jsonl", "data/chunk-000")):
            raise BadInput(f"{directory / INFO}: missing; copy the dataset again")
        return []
    return metadata_files(directory, read_info(directory))


def dataset_root(path: Path) -> Path:
    """The dataset's folder, from one of `metadata_files`."""
    return path.parents[1] if path.suffix == ".jsonl" else path.parents[3]


def related(path: Path) -> list[Path]:
    """All files of the dataset but its statistics; see `Format`."""
    root = dataset_root(path)
    found = [file for folder in ("data", "videos") for file in (root / folder).rglob("*.*")]
    return sorted([root / INFO, *found])


def action_names(directory: Path, key: str = "") -> list[str]:
    """The names of the joints or other parts that the actions in column ``key`` move."""
    names = read_info(directory)["features"].get(key or ACTION, {}).get("names") or []
    while isinstance(names, dict):  # such as {"motors": [...]}
        names = next(iter(names.values()), [])
    return [str(name) for name in names] if isinstance(names, list) else []


def facts(directory: Path) -> dict[str, str]:
    """Lines for `dataset.py info`."""
    info = read_info(directory)
    found = {
        "frames": f"{info.get('total_frames')} in {info.get('total_episodes')} episodes, {info['codebase_version']}",
        "fps": f"{info['fps']:g}",
        "cameras": ", ".join(cameras(info)),
        "action names": ", ".join(action_names(directory)),
        "robot": str(info.get("robot_type") or ""),
    }
    return {name: text for name, text in found.items() if text}


# Reading


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each episode that one of `metadata_files` lists.

    Raises:
        BadInput: the metadata is damaged, no camera is chosen of several, or an array that was named does not exist.
    """
    require_pyarrow(path)
    root = dataset_root(path)
    info = read_info(root)
    with safe_read(path, "LeRobot"):
        places = read_places(path, root, info)
    if mapping.list_only:
        return [(f"episode_{place.number}", partial(_raise_missing, place.data, [place.number])) for place in places]
    names = _names(info, mapping, root)
    states = [name for name in _numbers(info) if name.startswith(STATE) and name not in names.values()] if raw else []
    states += [name for name in mapping.states if name not in states]
    loaders: LabelledLoaders = []
    for lost, numbers in _missing_files(places, camera_names(names)).items():
        loaders.append((f"episode_{numbers[0]}", partial(_raise_missing, lost, numbers)))
        places = [place for place in places if place.number not in numbers]
    for place in places:
        load = partial(_load, place, names, states, float(info["fps"]), root, mapping, raw)
        loaders.append((f"episode_{place.number}", load))
    return loaders + _count_check(path, root, info)


def _names(info: dict, mapping: DataMapping, root: Path) -> dict[str, str]:
    """The name of the column of each role; "" for a reward that comes from labels, and for a missing ``done``."""
    features, found = info["features"], cameras(info)
    defaults = {"image": found[0] if len(found) == 1 else "", "action": ACTION}
    defaults |= {"reward": REWARD, "done": DONE if DONE in features else ""}
    for camera in mapping.cameras:
        if camera not in features:
            raise BadInput(f"{root}: no camera {camera!r} (--image_key); there are: {by_likeness(camera, found)}")
    names = mapping.names(defaults, features, root)
    if not found:
        depths = [name for name, feature in features.items() if is_depth(feature)]
        raise BadInput(f"{root}: no RGB camera in {INFO}{', only depth maps: ' * bool(depths)}{', '.join(depths)}")
    for name in [name for name in camera_names(names) if name not in found]:
        listed = by_likeness(name, found)
        what = f"{name} has no images" if name else f"{len(found)} cameras"
        what = f"{name} is a depth map, not an RGB camera" if name and is_depth(features[name]) else what
        raise BadInput(f"{root}: {what}; choose one with --image_key: {listed} ({SEVERAL})")
    numbers = _numbers(info)
    if names["reward"] == REWARD and REWARD not in numbers:
        raise BadInput(no_rewards(root, root, REWARD, by_likeness(REWARD, numbers)))
    for role in ("action", "reward", "done"):
        if names[role] and names[role] not in numbers:
            listed = by_likeness(names[role], numbers)
            raise BadInput(f"{root}: no column {names[role]} with numbers; name one with --{role}_key: {listed}")
    for name in mapping.states:
        if name not in numbers:
            raise BadInput(f"{root}: no column {name} with numbers (--state_keys): {by_likeness(name, numbers)}")
    return names


def _numbers(info: dict) -> list[str]:
    """Names of the columns with numbers."""
    return [name for name, feature in info["features"].items() if feature["dtype"] not in (*CAMERA_TYPES, "string")]


def _missing_files(places: list[EpisodePlace], cameras: list[str]) -> dict[Path, list[int]]:
    """Files that do not exist, with the numbers of their episodes."""
    exists: dict[Path, bool] = {}
    missing: dict[Path, list[int]] = {}
    for place in places:
        for path in [place.data, *(video for key, (video, _) in place.videos.items() if key in cameras)]:
            if path not in exists:
                exists[path] = path.is_file()
            if not exists[path]:
                missing.setdefault(path, []).append(place.number)
                break
    return missing


def _raise_missing(path: Path, numbers: list[int]) -> dict:
    episodes = f"episode {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} episodes from {numbers[0]} on"
    raise BadInput(f"{path}: missing, with {episodes}; copy the dataset again")


def _count_check(path: Path, root: Path, info: dict) -> LabelledLoaders:
    """A loader that fails, for the first file of the metadata, if ``info.json`` says another number of episodes."""
    files = metadata_files(root, info)
    total = info.get("total_episodes")
    if path != files[0] or not isinstance(total, int):
        return []
    with safe_read(path, "LeRobot"):
        listed = sum(len(read_places(file, root, info)) for file in files)
    return [] if listed == total else [("info.json", partial(_raise_count, root, total, listed))]


def _raise_count(root: Path, total: int, listed: int) -> dict:
    raise BadInput(f"{root / INFO}: total_episodes is {total}, meta/episodes lists {listed}; copy the dataset again")


def _load(
    place: EpisodePlace, names: dict[str, str], states: list[str], fps: float, root: Path, mapping: DataMapping,
    raw: bool,
) -> dict:  # fmt: skip
    """An episode in the row convention, with the columns ``states`` too."""
    where, cameras = f"{root} episode {place.number}", camera_names(names)
    used = {role: names[role] for role in ("action", "reward", "done") if names[role]}
    wanted = {*used.values(), *states, "frame_index", *({*cameras} - place.videos.keys())}
    with safe_read(place.data, "Parquet"):
        rows = read_parquet(place.data, sorted(wanted), [("episode_index", "=", place.number)]).sort_by("frame_index")
        if len(rows) != place.frames:
            raise ValueError(f"{len(rows)} of the {place.frames} rows of episode {place.number} are in it")
        if not np.array_equal(column_array(rows["frame_index"]).ravel(), np.arange(place.frames)):
            raise ValueError(f"frame_index of episode {place.number} is not 0 to {place.frames - 1}")
        frames = {
            name: _encoded_images(rows[name], mapping.image_size, place.data)
            for name in cameras
            if name not in place.videos
        }
        columns = {role: as_numbers(column_array(rows[name])) for role, name in used.items()}
        require_values(columns, used, where)
        extras = {name: column_array(rows[name]) for name in states}
    for name in [name for name in cameras if name in place.videos]:
        (video, start), at = place.videos[name], f"{place.videos[name][0]} episode {place.number}"
        with safe_read(at, "video"):
            frames[name] = read_video(video, start, fps, place.frames, mapping.image_size, at)
    columns = mapping.with_rewards(columns, place.frames)
    with safe_read(where, "LeRobot"):
        episode = _to_rows(columns, where) | extras
    several = len(cameras) > 1
    images = {name: frames[name].images for name in cameras} if several else frames[cameras[0]].images
    shapes = np.array([frames[name].shape for name in cameras] if several else frames[cameras[0]].shape)
    standard = finished(episode | {"image": images, "image_shape": shapes}, where, mapping, raw=False)
    if raw:
        return {key: array for key, array in (standard | extras).items() if key != "image_shape"}
    return standard | {TASK: np.array(place.task)}


def _encoded_images(column, size: int | None, where: Path) -> Frames:
    """The frames of a column of {bytes, path}, or of bytes."""
    encoded = [row["bytes"] if isinstance(row, dict) else row for row in column.to_pylist()]
    if None in encoded:
        raise ValueError(f"frame {encoded.index(None)} has no bytes; images must be in the file")
    return read_images(encoded, size, where)


def _to_rows(columns: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Action, reward and discount in the row convention, from the columns; see the top of this file."""
    action = columns["action"].reshape(len(columns["action"]), -1)
    reward = columns["reward"].reshape(len(action), -1)[:, 0].astype(np.float32)
    episode = {"action": action, "reward": reward}
    if "done" in columns:
        episode["discount"] = discount_of(columns["done"], where)
    return moved_down(episode, len(action), where)


FORMAT = Format(
    name="lerobot",
    title="LeRobot",
    list_episodes=list_episodes,
    mapped=True,
    find_below=find_below,
    related=related,
    facts=facts,
    action_names=action_names,
    seconds=300,  # for the frames before an episode that begins late in its video
)
