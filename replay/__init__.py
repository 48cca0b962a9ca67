"""Data to train on: the offline dataset, the online replay, and prefetching of batches.

Dataset formats are in `replay.formats`, one file each.
"""

from replay.data_files import first_image_shape
from replay.description import read_description
from replay.formats import FORMATS
from replay.mapping import DataMapping
from replay.npz_files import episode_filename, save_episode
from replay.offline import OfflineDataset
from replay.online import OnlineReplay
from replay.prefetch import Prefetcher
from replay.store import Batch, SequenceStore

__all__ = [
    "FORMATS",
    "Batch",
    "DataMapping",
    "OfflineDataset",
    "OnlineReplay",
    "Prefetcher",
    "SequenceStore",
    "episode_filename",
    "first_image_shape",
    "read_description",
    "save_episode",
]
