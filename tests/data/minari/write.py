"""Write the Parquet datasets of this folder with Minari 0.5.4: MINARI_DATASETS_PATH=tests/data/minari python write.py

Observation t of episode e is (20 (t + 1), 10 e, 30), action t is (t + 1) / 10, reward t is t + 1 + 10 e; 1 terminates.
"""

import gymnasium
import minari
import numpy as np
from gymnasium.spaces import Box, Dict
from minari.data_collector.episode_buffer import EpisodeBuffer

STEPS = 5


def episode(number: int, size: int, wrap) -> EpisodeBuffer:
    frames = [np.full((size, size, 3), (20 * (t + 1), 10 * number, 30), np.uint8) for t in range(STEPS + 1)]
    last = [t == STEPS - 1 for t in range(STEPS)]
    return EpisodeBuffer(
        id=number,
        observations=wrap(frames),
        actions=[np.array([t + 1, -t - 1], np.float32) / 10 for t in range(STEPS)],
        rewards=[t + 1.0 + 10 * number for t in range(STEPS)],
        terminations=[end and number == 1 for end in last],
        truncations=[end and number == 0 for end in last],
        infos={"success": [0.0] + [float(end) for end in last]},
    )


def main() -> None:
    raw, jpeg = (Box(0, 255, (size, size, 3), np.uint8) for size in (8, 32))
    spaces = {
        "raw-image": (raw, lambda frames: frames, 8),
        "jpeg-dict": (
            Dict({"image": jpeg, "height": Box(-9, 9, (1,))}),
            lambda frames: {"image": frames, "height": [np.zeros(1, np.float32)] * len(frames)},
            32,
        ),
    }
    for name, (space, wrap, size) in spaces.items():
        minari.create_dataset_from_buffers(
            f"parquet/{name}-v0",
            [episode(number, size, wrap) for number in range(2)],
            observation_space=space,
            action_space=Box(-1, 1, (2,)),
            data_format="parquet",
            jpeg_encoding=size == 32,
            env=None,
        )


if __name__ == "__main__":
    gymnasium.logger.min_level = 40
    main()
