"""Whether the checkpoint in a run's directory may be continued under the settings given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tools
from tools import BadInput
from training.methods import Phase
from training.selector import named_tasks
from training.trained import CHECKPOINT

MAY_CHANGE = set(  # between a run and its resumption; the phases already done and the data are checked by themselves
    "configs logdir device offline_traindir dataset_format dataset_cache replay_size eta_steps pretrain_steps "
    "warmup_rounds warmup_updates warmup_steps rounds target_iterations source_iterations eval_every eval_episodes "
    "log_every video_every checkpoint_minutes eval_envs compile".split()
)


def read_saved(
    logdir: Path, config: SimpleNamespace, phases: list[Phase], dataset: list[float] | None
) -> dict[str, Any] | None:
    """The checkpoint of a run directory, if any; BadInput if it belongs to another run.

    ``dataset`` holds the figures that tell one dataset from another.
    """
    if not (logdir / CHECKPOINT).exists():
        return None
    saved = tools.load_checkpoint(logdir / CHECKPOINT)
    old, new = with_full_names(saved["config"]), with_full_names(vars(config))
    for key in sorted((old.keys() & new.keys()) - MAY_CHANGE):
        if old[key] != new[key]:
            raise BadInput(
                f"{logdir} holds a run with {key} {old[key]}, not {new[key]}: "
                f"give the old value to resume it, or another --logdir"
            )
    if saved["phases"] != [phase.kind for phase in phases[: len(saved["phases"])]]:
        raise BadInput(
            f"{logdir} is past the phases {', '.join(saved['phases'])}, which these settings do not begin "
            f"with: give the old number of warm-up rounds and rounds to resume it, or another --logdir"
        )
    if saved["dataset"] != dataset:
        raise BadInput(
            f"{logdir} holds a run on other data than {config.offline_traindir} (episodes, steps and "
            f"returns were {saved['dataset']}): give the old --offline_traindir, or another --logdir"
        )
    return saved


def with_full_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with their tasks named in full, so that two names of one task are alike."""
    keys = [key for key in ("source_task", "target_task") if settings[key]]
    return {**settings, **{key: ",".join(named_tasks(SimpleNamespace(**settings), key)) for key in keys}}
