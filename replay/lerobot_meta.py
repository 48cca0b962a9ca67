"""The metadata of a LeRobot dataset: ``meta/info.json`` and its episodes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from replay.tables import read_parquet, table_columns
from tools import BadInput

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
CAMERA_TYPES = ("video", "image")


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode is.

    Attributes:
        number: its episode_index.
        frames: T.
        data: the Parquet file with its rows.
        videos: the mp4 file of each camera and the time of the first frame in it, in seconds.
        task: what was to be done, in words; "" if it is not known.
    """

    number: int
    frames: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    task: str = ""


def read_info(root: Path) -> dict:
    """The contents of ``meta/info.json``.

    Raises:
        BadInput: it is missing, damaged, lacks an entry, or is of an unknown version.
    """
    path = root / INFO
    try:
        info = json.loads(path.read_text())
        version, features, fps = info["codebase_version"], info["features"], float(info["fps"])
        types = [feature["dtype"] for feature in features.values()]
        if not all(isinstance(text, str) for text in (*types, info["data_path"])):
            raise ValueError("features or data_path")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; copy the dataset again") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{path}: not the description of a LeRobot dataset ({str(error)[:80]}); copy it again"
        ) from error
    except KeyError as error:
        raise BadInput(f"{path}: no entry {error}; copy it again") from error
    if version not in VERSIONS:
        raise BadInput(f"{path}: LeRobot format {version!r}, not {', '.join(VERSIONS)}; convert it with lerobot")
    if not 0 < fps < 10_000:
        raise BadInput(f"{path}: fps {fps:g}; correct it")
    return info


def cameras(info: dict) -> list[str]:
    """Names of the features that are images, without depth maps."""
    features = info["features"].items()
    return [name for name, feature in features if feature["dtype"] in CAMERA_TYPES and not is_depth(feature)]


def is_depth(feature: dict) -> bool:
    """Whether a feature is a depth map.

    LeRobot says so in ``is_depth_map``, and before June 2026 in ``video.is_depth_map``, in ``info`` or ``video_info``.
    A grey video of more than 8 bits is one too.
    """
    details = {}
    for part in (feature.get("video_info"), feature.get("info")):
        details |= {key: value for key, value in part.items() if value} if isinstance(part, dict) else {}
    depth_format = re.fullmatch(r"gray(9|1\d|32|f)\w*", str(details.get("video.pix_fmt")))
    return any(key.endswith("is_depth_map") for key in details) or depth_format is not None


def metadata_files(root: Path, info: dict) -> list[Path]:
    """The files that list the episodes, in order."""
    if info["codebase_version"] != "v3.0":
        return [root / "meta" / "episodes.jsonl"]
    found = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not found:
        raise BadInput(f"{root / 'meta' / 'episodes'}: no chunk-000/file-000.parquet in it; copy the dataset again")
    return found


def read_places(path: Path, root: Path, info: dict) -> list[EpisodePlace]:
    """The episodes that one of `metadata_files` lists.

    Raises:
        Any of `safe_read.READ_ERRORS` if the file is damaged.
    """
    keys = [name for name in cameras(info) if info["features"][name]["dtype"] == "video"]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [_place_of_file(root, info, keys, row) for row in rows]
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted += {"tasks"} & set(table_columns(path))
    for key in keys:
        wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    return [_place_in_file(root, info, keys, row) for row in read_parquet(path, wanted).to_pylist()]


def _place_of_file(root: Path, info: dict, keys: list[str], row: dict) -> EpisodePlace:
    """Format v2: an episode has files of its own."""
    number = int(row["episode_index"])
    fields = {"episode_index": number, "episode_chunk": number // int(info.get("chunks_size") or 1000)}
    videos = {key: (_file(root, info, "video_path", **fields, video_key=key), 0.0) for key in keys}
    return EpisodePlace(number, int(row["length"]), _file(root, info, "data_path", **fields), videos, _task(row))


def _place_in_file(root: Path, info: dict, keys: list[str], row: dict) -> EpisodePlace:
    """Format v3: a file has many episodes."""
    videos = {}
    for key in keys:
        fields = {name: int(row[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index")}
        path = _file(root, info, "video_path", **fields, video_key=key)
        videos[key] = (path, float(row[f"videos/{key}/from_timestamp"]))
    fields = {name: int(row[f"data/{name}"]) for name in ("chunk_index", "file_index")}
    data = _file(root, info, "data_path", **fields)
    return EpisodePlace(int(row["episode_index"]), int(row["length"]), data, videos, _task(row))


def _task(row: dict) -> str:
    return ", ".join(map(str, row.get("tasks") or ()))


def _file(root: Path, info: dict, template: str, **fields: object) -> Path:
    if not isinstance(info.get(template), str):
        raise ValueError(f"info.json has no {template}")
    relative = Path(info[template].format(**fields))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{template} leaves the dataset's folder")
    return root / relative
