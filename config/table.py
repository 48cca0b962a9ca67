"""What is known about each setting of configs.yaml: one entry a setting, from which all lists of settings follow.

A new setting is a line with a comment in the block `defaults` of configs.yaml, and an entry of `SETTINGS` here. If only
some methods use it, their entries in training/methods.py name it too. Suites describe their settings themselves.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from config.config import Config, has_target_simulator
from replay import FORMATS
from replay.mapping import PLACES


class Traits(Protocol):
    """What the conditions below ask about a method; training/methods.py has the methods, and what each trait means."""

    online: str
    dataset: bool
    uses_sources: bool
    aligned_with_sources: bool
    world_model: bool
    dreamer_behavior: bool
    critic: bool


class Condition(NamedTuple):
    """What must hold for a setting to have an effect on a run.

    ``without`` is the setting or the part that the run lacks if it does not hold; "": it is another method's setting.
    """

    holds: Callable[[Traits, Config], object]
    without: str = ""


def evaluates_in_simulator(method: Traits, config: Config) -> bool:
    """Whether a run's evaluations are episodes in a simulator. Without one, it has only its offline figures."""
    return not method.dataset or has_target_simulator(config)


def has_state_keys(config: Config) -> bool:
    """Whether an agent of the run observes states beside its image."""
    return bool(config.state_keys) or config.source_state_keys not in ("", "none")


ONLINE = Condition(lambda method, config: method.online)
SOURCES = Condition(lambda method, config: method.uses_sources)
ALL_SOURCES = Condition(lambda method, config: method.online == "sources")
DATASET = Condition(lambda method, config: method.dataset)
TIES = Condition(lambda method, config: method.aligned_with_sources)
WORLD_MODEL = Condition(lambda method, config: method.world_model)
BEHAVIOR = Condition(lambda method, config: method.dreamer_behavior)
CRITIC = Condition(lambda method, config: method.critic)
TARGET_SIMULATOR = Condition(evaluates_in_simulator, "a simulator of the target")
SIMULATOR = Condition(lambda method, config: method.online or evaluates_in_simulator(method, config), "a simulator")
WARM_UP = Condition(lambda method, config: config.warmup_rounds, "warmup_rounds")
SECOND_ROUND = Condition(lambda method, config: config.rounds > 1, "a second round")
STATE_ALIGNMENT = Condition(lambda method, config: config.state_alignment, "state_alignment")
REWARD_ALIGNMENT = Condition(lambda method, config: config.reward_alignment, "reward_alignment")
CONSTRAINT = Condition(lambda method, config: config.value_constraint != "off", "value_constraint")
SOURCE_VALUE = Condition(
    lambda method, config: config.value_constraint in ("minmax", "constant") or config.value_constraint_relative,
    "value_constraint minmax or constant, or value_constraint_relative",
)
STATES = Condition(
    lambda method, config: config.source_observation == "state" or has_state_keys(config),
    "state_keys, or source_observation state",
)
BESIDE_IMAGE = Condition(lambda method, config: has_state_keys(config), "state_keys")
SOURCE_STATES = Condition(lambda method, config: config.state_keys or config.source_state_keys != "none", "state_keys")
GAUSSIAN = Condition(lambda method, config: config.dyn_discrete == 0, "dyn_discrete 0")
CATEGORICAL = Condition(lambda method, config: config.dyn_discrete > 0, "a categorical latent, dyn_discrete")
BLOCK_GRU = Condition(lambda method, config: config.gru_blocks, "gru_blocks")
BALANCED_KL = Condition(lambda method, config: config.kl_loss == "balanced", "kl_loss balanced")
SEPARATE_KL = Condition(lambda method, config: config.kl_loss == "separate", "kl_loss separate")
RAW_RETURNS = Condition(lambda method, config: config.returns == "raw", "returns raw")
ADAM = Condition(lambda method, config: config.optimizer == "adam" or not method.world_model, "optimizer adam")
LAPROP = Condition(lambda method, config: config.optimizer == "laprop", "optimizer laprop")
PRED_DISCOUNT = Condition(lambda method, config: config.pred_discount, "pred_discount True")
MIXED_GRADIENT = Condition(lambda method, config: config.actor_grad == "both", "actor_grad both")

AFFECTED = ("sources", "target", "scores", "cost", "length")
REPORTS = ("", "named", "ablation", "setup", "length", "ignored")
COMMANDS = ("co_training", "collect", "checkpoint", "sac", "dreamer")


@dataclass(frozen=True)
class Setting:
    """The facts about a setting.

    Attributes:
        minimum, maximum: bounds of a number, or of each of a list.
        above: a bound that is not itself valid.
        choices: returns the valid texts; None: any.
        used_if: conditions for an effect on a run; the first that does not hold is the reason in the message.
        resumable: whether a resumed run may have another value.
        in_name: whether a run's name has a value that is not that of the run's blocks. Those of a resumable setting
            never are.
        affects: words. ``sources``: the pretraining of the sources, so all results; ``target``: only what follows it;
            ``scores``: evaluations. ``cost``: the time of an update. ``length``: the phases of a run.
        report: how report.py treats runs with different values. ``named``: by a column, or as the seed; ``ablation``,
            ``setup``, ``length``: in a row's label; ``ignored``: not at all; "": compared if results depend on it.
        commands: which use it: words among ``co_training``, ``collect`` (with any policy), and collect.py with
            ``--policy`` ``checkpoint``, ``sac`` or ``dreamer``.
        in_sweep: the part of a sweep that decides it; "" if the spec's grid may.
    """

    minimum: float = 0
    maximum: float = math.inf
    above: float = -math.inf
    choices: Callable[[], Collection[str]] | None = None
    used_if: tuple[Condition, ...] = ()
    resumable: bool = False
    in_name: bool = True
    affects: str = "sources"
    report: str = ""
    commands: str = "co_training dreamer"
    in_sweep: str = ""

    def __post_init__(self):
        for words, known in ((self.affects, AFFECTED), (self.commands, COMMANDS), (self.report, REPORTS)):
            if unknown := set(words.split()) - set(known):
                raise ValueError(f"{min(unknown)!r} is not one of {known}")

    @property
    def affects_results(self) -> bool:
        return not {"sources", "target", "scores"}.isdisjoint(self.affects.split())

    @property
    def named_by_reports(self) -> bool:
        return self.report not in ("", "ignored")


def one_of(*texts: str) -> dict[str, Any]:
    return {"choices": lambda: texts}


RECORD = {"resumable": True, "affects": ""}  # nothing that is learned depends on it
BOTH = {"commands": "co_training collect"}  # of the simulators, so of every command that has some
LENGTH = {"resumable": True, "affects": "target length", "commands": "co_training"}
TIE = {"affects": "target"}

SETTINGS = {
    # The run
    "method": Setting(in_name=False, affects="target", report="named", commands="co_training"),
    "source_task": Setting(in_name=False, report="named", commands="co_training", in_sweep="pair"),
    "target_task": Setting(in_name=False, affects="target", report="named", commands="co_training", in_sweep="pair"),
    "offline_traindir": Setting(used_if=(DATASET,), resumable=True, affects="target", report="named", in_sweep="data"),
    "logdir": Setting(**RECORD, in_sweep="--out"),
    "source_from": Setting(**RECORD, commands="co_training"),
    "seed": Setting(maximum=2**31 - 1, in_name=False, report="named", **BOTH),
    "device": Setting(**RECORD, **BOTH),
    "threads": Setting(**RECORD, commands="co_training checkpoint sac dreamer"),
    "precision": Setting(**one_of("auto", "float32", "bfloat16"), affects="sources cost"),
    "compile": Setting(**one_of("auto", "on", "off"), used_if=(WORLD_MODEL,), **RECORD),
    # Simulators
    "envs": Setting(used_if=(ONLINE,), report="ignored", **BOTH),
    "size": Setting(minimum=16, maximum=512, affects="sources cost", **BOTH),
    "time_limit": Setting(minimum=1, used_if=(SIMULATOR,), **BOTH),
    "state_keys": Setting(used_if=(WORLD_MODEL,), affects="target cost", report="setup"),
    "source_state_keys": Setting(used_if=(WORLD_MODEL, SOURCES, SOURCE_STATES), affects="sources cost", report="setup"),
    "source_observation": Setting(
        **one_of("image", "state"), used_if=(SOURCES,), affects="sources cost", report="setup"
    ),
    "sparse_reward": Setting(used_if=(SOURCES,), report="setup", **BOTH),
    "background": Setting(used_if=(TARGET_SIMULATOR,), affects="scores", report="setup", **BOTH),
    "action_noise": Setting(affects="", report="setup", commands="collect"),
    "render": Setting(**one_of("fast", "full"), used_if=(SIMULATOR,), **BOTH),
    # Algorithm 1
    "prefill": Setting(used_if=(ONLINE,), commands="co_training sac dreamer"),
    "pretrain": Setting(used_if=(ONLINE,)),
    "pretrain_steps": Setting(used_if=(SOURCES,), **LENGTH | {"affects": "sources length"}),
    "warmup_rounds": Setting(**LENGTH),
    "warmup_updates": Setting(used_if=(WARM_UP,), **LENGTH),
    "warmup_steps": Setting(used_if=(SOURCES, WARM_UP), **LENGTH),
    "rounds": Setting(report="length", **LENGTH),
    "target_iterations": Setting(report="length", **LENGTH),
    "source_iterations": Setting(used_if=(SOURCES, SECOND_ROUND), **LENGTH),
    "train_every": Setting(minimum=1),
    "eval_every": Setting(minimum=1, resumable=True, affects="length", commands="sac dreamer"),
    "eval_episodes": Setting(
        minimum=1, used_if=(TARGET_SIMULATOR,), resumable=True, affects="scores", commands="co_training sac dreamer"
    ),
    "eval_envs": Setting(minimum=1, used_if=(TARGET_SIMULATOR,), **RECORD),
    # Data
    "batch_size": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "batch_length": Setting(minimum=2, used_if=(WORLD_MODEL,), affects="sources cost"),
    "grad_accum": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "dataset_format": Setting(choices=lambda: ("auto", *FORMATS), used_if=(DATASET,), **RECORD),
    "image_key": Setting(used_if=(DATASET,), affects="target"),
    "action_key": Setting(used_if=(DATASET,), affects="target"),
    "reward_key": Setting(used_if=(DATASET,), affects="target"),
    "done_key": Setting(used_if=(DATASET,), affects="target"),
    "action_range": Setting(used_if=(DATASET,), affects="target"),
    "action_at": Setting(choices=lambda: ("auto", *PLACES), used_if=(DATASET,), affects="target"),
    "split": Setting(used_if=(DATASET,), affects="target"),
    "other_task": Setting(used_if=(DATASET, TARGET_SIMULATOR), **RECORD),
    "dataset_cache": Setting(used_if=(DATASET,), **RECORD),
    "read_memory": Setting(minimum=0.25, used_if=(DATASET,), **RECORD),
    "read_seconds": Setting(minimum=1, maximum=10**6, used_if=(DATASET,), **RECORD),
    "holdout": Setting(maximum=1, used_if=(DATASET,), affects="target"),
    "sample_ends": Setting(**one_of("auto", "on", "off")),
    "replay_size": Setting(used_if=(ONLINE,), resumable=True),
    # World model
    "dyn_stoch": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "dyn_discrete": Setting(used_if=(WORLD_MODEL,), affects="sources cost"),
    "dyn_deter": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "dyn_hidden": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "dyn_min_std": Setting(used_if=(WORLD_MODEL, GAUSSIAN)),
    "cnn_depth": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "state_layers": Setting(minimum=1, used_if=(WORLD_MODEL, STATES)),
    "state_embed": Setting(minimum=1, used_if=(WORLD_MODEL, BESIDE_IMAGE), affects="sources cost"),
    "units": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "act": Setting(**one_of("ELU", "ReLU", "SiLU", "GELU", "Tanh"), used_if=(WORLD_MODEL,)),
    "norm": Setting(**one_of("none", "rms"), used_if=(WORLD_MODEL,), affects="sources cost"),
    "cnn": Setting(**one_of("dreamerv2", "dreamerv3"), used_if=(WORLD_MODEL,), affects="sources cost"),
    "gru_blocks": Setting(used_if=(WORLD_MODEL,), affects="sources cost"),
    "unimix": Setting(maximum=1, used_if=(WORLD_MODEL, BLOCK_GRU, CATEGORICAL)),
    "symlog": Setting(used_if=(WORLD_MODEL, STATES)),
    "state_standardize": Setting(used_if=(WORLD_MODEL, STATES)),
    "heads": Setting(**one_of("gaussian", "twohot"), used_if=(WORLD_MODEL,), affects="sources cost"),
    "reward_layers": Setting(minimum=1, used_if=(WORLD_MODEL,)),
    "discount_layers": Setting(minimum=1, used_if=(WORLD_MODEL, PRED_DISCOUNT)),
    "pred_discount": Setting(used_if=(WORLD_MODEL,)),
    "kl_scale": Setting(used_if=(WORLD_MODEL,)),
    "kl_loss": Setting(**one_of("balanced", "separate"), used_if=(WORLD_MODEL,)),
    "kl_balance": Setting(maximum=1, used_if=(WORLD_MODEL, BALANCED_KL)),
    "kl_representation": Setting(used_if=(WORLD_MODEL, SEPARATE_KL)),
    "kl_free": Setting(used_if=(WORLD_MODEL,)),
    "image_scale": Setting(used_if=(WORLD_MODEL,)),
    "state_scale": Setting(used_if=(WORLD_MODEL, STATES)),
    "reward_scale": Setting(used_if=(WORLD_MODEL,)),
    "discount_scale": Setting(used_if=(WORLD_MODEL, PRED_DISCOUNT)),
    # Behavior
    "imag_horizon": Setting(minimum=2, used_if=(WORLD_MODEL,), affects="sources cost"),
    "imag_starts": Setting(used_if=(BEHAVIOR,), affects="sources cost"),
    "discount": Setting(maximum=1, used_if=(CRITIC,)),
    "discount_lambda": Setting(maximum=1, used_if=(BEHAVIOR,)),
    "actor_layers": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "value_layers": Setting(minimum=1, used_if=(WORLD_MODEL,), affects="sources cost"),
    "actor_grad": Setting(**one_of("dynamics", "reinforce", "both"), used_if=(BEHAVIOR,)),
    "actor_grad_mix": Setting(maximum=1, used_if=(BEHAVIOR, MIXED_GRADIENT)),
    "actor_dist": Setting(**one_of("truncated", "bounded"), used_if=(BEHAVIOR,)),
    "returns": Setting(**one_of("raw", "percentile"), used_if=(BEHAVIOR,)),
    "actor_entropy": Setting(used_if=(BEHAVIOR,)),
    "actor_min_std": Setting(used_if=(BEHAVIOR,)),
    "slow_critic": Setting(**one_of("target", "regularizer"), used_if=(BEHAVIOR,)),
    "slow_target_update": Setting(minimum=1, used_if=(BEHAVIOR,)),
    "slow_target_fraction": Setting(above=0, maximum=1, used_if=(BEHAVIOR,)),
    "replay_value_scale": Setting(used_if=(BEHAVIOR,), affects="sources cost"),
    # The ties
    "state_alignment": Setting(used_if=(TIES,), report="ablation", **TIE),
    "state_alignment_scale": Setting(used_if=(TIES, STATE_ALIGNMENT), **TIE),
    "reward_alignment": Setting(used_if=(TIES,), report="ablation", **TIE),
    "target_informed_factor": Setting(maximum=1, used_if=(TIES, REWARD_ALIGNMENT), **TIE),
    "eta_start": Setting(maximum=1, used_if=(TIES, REWARD_ALIGNMENT), **TIE),
    "eta_end": Setting(maximum=1, used_if=(TIES, REWARD_ALIGNMENT), **TIE),
    "eta_steps": Setting(used_if=(TIES, REWARD_ALIGNMENT), **TIE),
    "value_constraint": Setting(
        **one_of("minmax", "brute", "constant", "off"), used_if=(TIES,), report="ablation", **TIE
    ),
    "value_constraint_scale": Setting(used_if=(TIES, CONSTRAINT), **TIE),
    "value_constraint_relative": Setting(used_if=(TIES, CONSTRAINT, RAW_RETURNS), report="ablation", **TIE),
    "constraint_latents": Setting(
        **one_of("target", "source"),
        used_if=(TIES, CONSTRAINT, SOURCE_VALUE),
        report="ablation",
        affects="target cost",
    ),
    "select": Setting(
        **one_of("nearest", "relative", "first", "round_robin"),
        used_if=(ALL_SOURCES,),
        in_name=False,
        affects="target",
        report="ablation",
    ),
    # Baselines, whose methods name them
    "ensemble": Setting(minimum=2, affects="target cost"),
    "disagreement_scale": Setting(affects="target"),
    "ewc_scale": Setting(affects="target"),
    "ewc_batches": Setting(minimum=1, affects="target"),
    "transitions": Setting(minimum=1, affects="target cost"),
    "frame_stack": Setting(minimum=1, affects="target cost"),
    "nstep": Setting(minimum=1, affects="target cost"),
    "feature_size": Setting(minimum=1, affects="target cost"),
    "q_units": Setting(minimum=1, affects="target cost"),
    "random_shift": Setting(affects="target"),
    "noise_start": Setting(affects="target"),
    "noise_end": Setting(affects="target"),
    "noise_steps": Setting(affects="target"),
    "noise_clip": Setting(affects="target"),
    "target_tau": Setting(maximum=1, affects="target"),
    "bc_scale": Setting(affects="target"),
    "conservative_scale": Setting(affects="target"),
    "conservative_actions": Setting(minimum=1, affects="target cost"),
    "key_tau": Setting(maximum=1, affects="target"),
    "initial_temperature": Setting(above=0, affects="target"),
    "temperature_lr": Setting(affects="target"),
    "uncertainty_scale": Setting(affects="target"),
    "imagined_noise": Setting(affects="target"),
    # Optimisation
    "model_lr": Setting(used_if=(WORLD_MODEL,)),
    "actor_lr": Setting(),
    "value_lr": Setting(used_if=(CRITIC,)),
    "optimizer": Setting(**one_of("adam", "laprop"), used_if=(WORLD_MODEL,)),
    "opt_eps": Setting(above=0),
    "grad_clip": Setting(above=0, used_if=(ADAM,)),
    "agc": Setting(above=0, used_if=(WORLD_MODEL, LAPROP)),
    "lr_warmup": Setting(used_if=(WORLD_MODEL, LAPROP)),
    "weight_decay": Setting(),
    # Records
    "log_every": Setting(minimum=1, **RECORD),
    "video_every": Setting(used_if=(WORLD_MODEL,), **RECORD),
    "video_size": Setting(used_if=(TARGET_SIMULATOR,), **RECORD),
    "checkpoint_minutes": Setting(**RECORD),
    "wandb": Setting(**RECORD),
}
NO_FLAGS = {  # values of a `Config` that configs.yaml does not have
    "configs": Setting(**RECORD, in_sweep="configs, outside the grid"),  # the names of its blocks
    "episodes": Setting(minimum=1, resumable=True, affects="length", commands="collect"),  # an option of collect.py
}


def facts(key: str) -> Setting:
    """The entry of a setting. One without an entry is a suite's, or of another version of this program."""
    one_or_more = key.endswith("_action_repeat")
    return SETTINGS.get(key) or NO_FLAGS.get(key) or Setting(minimum=int(one_or_more))


def settings_with(test: Callable[[Setting], bool]) -> list[str]:
    """The settings whose entries fulfil ``test``, in the table's order."""
    return [key for key, setting in {**SETTINGS, **NO_FLAGS}.items() if test(setting)]


def settings_that_affect(word: str) -> list[str]:
    return settings_with(lambda setting: word in setting.affects.split())
