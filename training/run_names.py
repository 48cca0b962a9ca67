"""The run directory of a command: named by its method, tasks, data, and the settings that differ from its blocks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from config import Config, facts, merge, read_blocks, source_tasks, target_task
from tools import short_name
from training.methods import Method


def default_logdir(config: Config, method: Method) -> Path:
    """A run directory named by the command, so that the same command resumes its run and another one does not."""
    parts = [] if config.method == "coworld" else [config.method]
    if method.uses_sources:
        sources = [str(task) for task in source_tasks(config)]
        parts += [config.select] if len(sources) > 1 and config.select != "nearest" else []
        parts += ["+".join(sources), "to"]
    target = target_task(config)
    if not (method.dataset and config.offline_traindir):
        return run_directory(config, *parts, str(target))
    data = Path(config.offline_traindir).expanduser().resolve()
    own = [] if data.name == short_name(target.name) else [f"data={data.name}"]
    digest = hashlib.blake2b(str(data).encode(), digest_size=4).hexdigest()
    more = [[f"data={data.parent.name}+{data.name}"], [f"data={data.name}-{digest}"]]  # for equal names of folders
    places = [run_directory(config, *parts, str(target), settings=settings) for settings in (own, *more)]
    found = [data_of_run(place) for place in places]
    its_own = [place for place, other in zip(places, found, strict=True) if other == data]
    free = [place for place, other in zip(places, found, strict=True) if other is None or not other.exists()]
    return [*its_own, *free, *places][0]  # a run on data that is gone may be on this data, moved


def data_of_run(logdir: Path) -> Path | None:
    """The folder of the dataset of the run in a directory; None if there is no run."""
    try:
        folder = YAML(typ="safe").load((logdir / "config.yaml").read_text())["offline_traindir"]
        return Path(folder).expanduser().resolve()
    except (OSError, ValueError, TypeError, KeyError, YAMLError):
        return None


def run_directory(config: Config, *parts: str, settings: Sequence[str] = ()) -> Path:
    """``runs/PARTS-BLOCKS-SETTINGS-seedN``; a long name is cut and gets a hash.

    The settings are ``settings``, and those that differ from the blocks, but for those of other parts of the name and
    those that may change when a run is resumed.
    """
    changed = list(settings)
    for key, value in merge(read_blocks(), config.configs, {"method": config.method}).items():
        own = getattr(config, key)
        if own != value and facts(key).in_name and not facts(key).resumable:
            changed.append(f"{key}={'x'.join(map(str, own)) if isinstance(own, list) else own}")
    return Path("runs") / f"{short_name('-'.join([*parts, *config.configs, *changed]))}-seed{config.seed}"
