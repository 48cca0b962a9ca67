"""Small files in the layouts that robot-learning programs write, made from their documentation and source.

An image at step t of episode e is `frame`: its red is 10 t + 10, its green 40 e, so that rows can be told apart.
"""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

STEPS = (6, 9, 5)
SIZE = 24


def frame(episode: int, step: int, size: int = SIZE) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[...] = 10 * step + 10, 40 * episode, 30
    image[step : step + 2, :4] = 255  # something that moves
    return image


def frames(episode: int, first: int, end: int, size: int = SIZE) -> np.ndarray:
    return np.stack([frame(episode, step, size) for step in range(first, end)])


def actions(episode: int, steps: int) -> np.ndarray:
    """Action t is (t + 1) / 20 and -e / 10."""
    return np.stack([(np.arange(steps) + 1) / 20, np.full(steps, -episode / 10)], 1).astype(np.float32)


def encoded(image: np.ndarray, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return data.getvalue()


def write_robomimic(path: Path, *, next_obs: bool = True, cameras: tuple[str, ...] = ("agentview_image",)) -> Path:
    """As robomimic's dataset_states_to_obs.py --done_mode 2; 0 and 2 succeed, with reward 1 in their last two steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"total": sum(STEPS), "env_args": json.dumps({"env_name": "Lift", "type": 1})})
        for episode, steps in enumerate(STEPS):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs.update({"num_samples": steps, "model_file": "<mujoco/>"})
            reward = np.zeros(steps)
            reward[-2:] = episode != 1
            done = reward.astype(np.int64)
            done[-1] = 1
            demo["actions"], demo["states"] = actions(episode, steps).astype(np.float64), np.zeros((steps, 7))
            demo["rewards"], demo["dones"] = reward, done
            for group, first in (("obs", 0), ("next_obs", 1))[: 1 + next_obs]:
                for camera in cameras:
                    image = frames(episode, first, first + steps)
                    demo.create_dataset(f"{group}/{camera}", data=image, compression="gzip")
                demo[f"{group}/robot0_eef_pos"] = np.arange(first, first + steps)[:, None] * np.ones(3)
                demo[f"{group}/agentview_depth"] = np.zeros((steps, SIZE, SIZE, 1), np.float32)
        for name, demos in (("train", (0, 2)), ("valid", (1,))):
            file[f"mask/{name}"] = np.array([f"demo_{number}" for number in demos], "S8")
    return path


def write_libero(path: Path) -> Path:
    """As LIBERO's create_dataset.py: what row t shows was seen after action t; the last reward and done are 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"macros_image_convention": "opengl", "bddl_file_name": "a.bddl", "num_demos": len(STEPS)})
        for episode, steps in enumerate(STEPS):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = steps
            last = (np.arange(steps) == steps - 1).astype(np.uint8)
            demo["actions"], demo["rewards"], demo["dones"] = actions(episode, steps).astype(np.float64), last, last
            demo["robot_states"] = np.zeros((steps, 9))
            demo["obs/agentview_rgb"] = frames(episode, 1, steps + 1)
            demo["obs/eye_in_hand_rgb"] = frames(episode, 1, steps + 1)[:, ::-1]
            demo["obs/joint_states"], demo["obs/ee_pos"] = np.zeros((steps, 7)), np.zeros((steps, 3))
    return path


def write_aloha(folder: Path, storage: str = "pixels", cameras: tuple[str, ...] = ("top",)) -> Path:
    """As ACT's record_sim_episodes.py, one file an episode; ``storage``: pixels, padded, bytes or variable."""
    folder.mkdir(parents=True, exist_ok=True)
    for episode, steps in enumerate(STEPS):
        with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
            file.attrs.update({"sim": storage == "pixels", "compress": storage != "pixels"})
            jpegs = [encoded(image) for image in frames(episode, 0, steps)]
            longest = max(map(len, jpegs))
            for camera in cameras:
                name = f"observations/images/{camera}"
                if storage == "pixels":
                    file.create_dataset(name, data=frames(episode, 0, steps), chunks=(1, SIZE, SIZE, 3))
                elif storage == "padded":
                    rows = [np.frombuffer(data.ljust(longest, b"\0"), np.uint8) for data in jpegs]
                    file.create_dataset(name, data=np.stack(rows), chunks=(1, longest))
                elif storage == "bytes":
                    file.create_dataset(name, data=np.array(jpegs, f"S{longest}"))
                else:
                    file.create_dataset(name, steps, h5py.vlen_dtype(np.uint8))
                    for row, data in enumerate(jpegs):
                        file[name][row] = np.frombuffer(data, np.uint8)
            if storage == "padded":
                file["compress_len"] = np.array([[len(data) for data in jpegs]] * len(cameras), np.float64)
            file["observations/qpos"] = np.arange(steps)[:, None] * np.ones(14)
            file["observations/qvel"] = np.zeros((steps, 14))
            file["action"] = actions(episode, steps)
    return folder


def write_diffusion_policy(path: Path, images: str = "img", kind: type = np.float32, version: int = 2) -> Path:
    """As Diffusion Policy's ReplayBuffer: blosc, chunks along time. ``path``: a folder, or ``.zarr.zip``."""
    import numcodecs
    import zarr

    zipped = path.name.endswith(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    store = zarr.storage.ZipStore(path, mode="w") if zipped else zarr.storage.LocalStore(path)
    root = zarr.create_group(store, zarr_format=version)
    episodes = list(enumerate(STEPS))
    arrays = {
        f"data/{images}": np.concatenate([frames(episode, 0, steps) for episode, steps in episodes]).astype(kind),
        "data/action": np.concatenate([actions(episode, steps) for episode, steps in episodes]),
        "data/state": np.concatenate([np.arange(steps)[:, None] * np.ones(5, np.float32) for _, steps in episodes]),
        "data/keypoint": np.zeros((sum(STEPS), 9, 2), np.float32),
        "data/n_contacts": np.zeros((sum(STEPS), 1), np.float32),
        "meta/episode_ends": np.cumsum(STEPS),
    }
    blosc = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    for name, array in arrays.items():
        compressor = {"compressors": blosc if name.startswith("data") else None} if version == 2 else {}
        chunks = (7, *array.shape[1:])
        root.create_array(name, shape=array.shape, chunks=chunks, dtype=array.dtype, **compressor)[:] = array
    store.close()
    return path


def write_d4rl(path: Path, *, timeouts: bool = True, rewards: bool = True, following: bool = False) -> Path:
    """D4RL's flat arrays, with images; episodes 0 and 2 terminate. Without timeouts and rewards: OGBench's.

    OGBench's terminals mark the last observation of an episode, of which all have one more step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = [steps + (not timeouts) for steps in STEPS]
    lasts = [np.arange(steps) == steps - 1 for steps in lengths]
    flat = {
        "observations": [frames(episode, 0, steps) for episode, steps in enumerate(lengths)],
        "actions": [actions(episode, steps) for episode, steps in enumerate(lengths)],
        "terminals": [last & (not timeouts or episode != 1) for episode, last in enumerate(lasts)],
        "qpos": [np.zeros((steps, 8), np.float32) for steps in lengths],
    }
    if timeouts:
        flat["timeouts"] = [last & (episode == 1) for episode, last in enumerate(lasts)]
    if rewards:
        flat["rewards"] = [np.arange(steps, dtype=np.float32) for steps in lengths]
    if following:
        flat["next_observations"] = [frames(episode, 1, steps + 1) for episode, steps in enumerate(lengths)]
    arrays = {name: np.concatenate(parts) for name, parts in flat.items()}
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")
    return path


def mutated_zip(path: Path, change) -> bytes:
    """The bytes of a zip file of which members are changed, and which is then a valid archive again."""
    data = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, change(source.read(name)))
    return data.getvalue()
