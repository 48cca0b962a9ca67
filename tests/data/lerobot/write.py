"""Write the LeRobot datasets of this folder with the lerobot package: python write.py v21|v30|v30_files

v21 needs lerobot 0.3.3, the others 0.4.4. v30_files has a file for each episode, H.264 videos and, for the camera
`wrist`, PNG images in the Parquet files. `frame` makes all contents, so the tests compare with it.
"""

import inspect
import sys
from pathlib import Path

import numpy as np

FRAMES, SIZE = (30, 24, 36), 64


def features(images: bool) -> dict:
    image = {"dtype": "video", "names": ["height", "width", "channels"]}
    return {
        "observation.images.top": {**image, "shape": (SIZE, SIZE, 3)},
        "observation.images.wrist": {**image, "shape": (48, SIZE, 3), "dtype": "image" if images else "video"},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (3,), "names": ["shoulder", "elbow", "gripper"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }


def frame(episode: int, t: int) -> dict:
    """Frame t. `top` shows a square that moves one pixel to the right a frame; its background tells the episode."""
    top = np.zeros((SIZE, SIZE, 3), np.uint8)
    top[..., 1] = 40 * episode
    top[20:36, t : t + 16] = (250, 40, 40)
    ramp = np.linspace(0, 200, SIZE).astype(np.uint8) + t
    last = t == FRAMES[episode] - 1
    return {
        "observation.images.top": top,
        "observation.images.wrist": np.tile(ramp[None, :, None], (48, 1, 3)).astype(np.uint8),
        "observation.state": np.array([t, episode], np.float32),
        "action": np.array([-90 + 5 * t, 10 * episode, t % 2], np.float32),
        "next.reward": np.array([0.1 * t + episode + last], np.float32),
        "next.done": np.array([last]),
        "next.success": np.array([last and episode != 1]),
    }


def main(name: str) -> None:
    from lerobot.datasets import lerobot_dataset, video_utils

    files = name == "v30_files"
    if files:
        encode = video_utils.encode_video_frames
        lerobot_dataset.encode_video_frames = lambda *a, **k: encode(*a, **{**k, "vcodec": "h264"})
    kind = lerobot_dataset.LeRobotDataset
    where = {"root": Path(__file__).parent / name, "robot_type": "toy"}
    data = kind.create("tests/reach", fps=10, features=features(files), **where)
    if files:
        data.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=0.001, video_files_size_in_mb=0.001)
    separate = "task" in inspect.signature(kind.add_frame).parameters
    for episode, frames in enumerate(FRAMES):
        for t in range(frames):
            one = frame(episode, t)
            data.add_frame(one, task="reach") if separate else data.add_frame({**one, "task": "reach"})
        data.save_episode()
    if hasattr(data, "finalize"):
        data.finalize()


if __name__ == "__main__":
    main(sys.argv[1])
