"""A sweep's spec: reading it, and the runs that it stands for."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from config import Config, check, convert, facts, merge, read_blocks
from tools import BadInput, nearest, short_name
from training.methods import find_method
from training.used_settings import unused_settings, unused_suite_settings
from wrappers import Task, parse_target, parse_task

KEYS = "configs collect data grid runs resources retries report".split()
RESOURCES = {"cpus": 1.0, "gpus": 0.0}
SMALLEST_SHARE = 0.01
GIVEN_BY_THE_SWEEP = ("task", "out", "logdir", "help")


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its place in the grid, and the flags that differ from its blocks."""

    name: str
    method: str
    sources: tuple[Task, ...]  # empty if the method has none
    target: Task
    seed: int
    settings: dict[str, Any]  # without those of other fields, and without those that have no effect
    leader: str = ""  # the run whose pretraining it begins from; "": its own


@dataclass(frozen=True)
class Spec:
    """A spec as read.

    ``grid`` is name -> values, ``runs`` are further grids. ``report`` has options of report.py, as `write_report` takes
    them.
    """

    path: Path
    configs: list[str] = field(default_factory=list)
    collect: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    runs: list[dict[str, list[Any]]] = field(default_factory=list)
    resources: dict[str, float] = field(default_factory=dict)
    retries: int = 3
    report: dict[str, Any] = field(default_factory=dict)

    def error(self, message: str) -> BadInput:
        return BadInput(f"{self.path}: {message}")


# Reading


def read_spec(path: Path, changes: Sequence[str] = ()) -> Spec:
    """The spec in a YAML file, with the changes ``KEY=VALUE`` of ``--set``. Raises BadInput if it is not valid."""
    try:
        values = YAML(typ="rt", pure=True).load(path.read_text())
    except (OSError, ValueError, YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise BadInput(f"{path} cannot be read: {reason}") from None
    if not isinstance(values, Mapping):
        raise BadInput(f"{path} is not a spec: it has no `key: value` lines (docs/sweeps.md)")
    values = {str(key): value for key, value in values.items()}
    for text in changes:
        set_value(values, text)
    for key in values:
        if key not in KEYS:
            raise BadInput(f"{path}: unknown key {key!r}; {nearest(key, KEYS)}")
    return Spec(path, **{key: READERS[key](Spec(path), key, value) for key, value in values.items()})


def set_value(values: dict[str, Any], text: str) -> None:
    """Apply ``KEY=VALUE``: a key of the spec, ``resources.gpus`` for one within it, or else a key of the grid."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--set {text}: write KEY=VALUE, like seed=[0,1] or resources.gpus=1")
    try:
        parsed = YAML(typ="rt", pure=True).load(value)
    except YAMLError:
        raise BadInput(f"--set {text}: {value!r} is not a value of YAML") from None
    first, _, rest = name.partition(".")
    if first not in KEYS:
        first, rest = "grid", name
    if not rest:
        values[first] = parsed
        return
    inner = values.get(first) or {}
    if not isinstance(inner, Mapping):
        raise BadInput(f"--set {text}: {first} has no keys")
    values[first] = {**inner, rest: parsed}


def read_mapping(spec: Spec, key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise spec.error(f"{key} is not a list of `key: value` lines")
    return {str(name): inner for name, inner in value.items()}


def read_list(spec: Spec, key: str, value: Any) -> list[Any]:
    """One value may be written without brackets."""
    return (
        [] if value is None else list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    )


def read_configs(spec: Spec, key: str, value: Any) -> list[str]:
    names = [str(name) for item in read_list(spec, key, value) for name in str(item).split()]
    for name in names:
        if name not in read_blocks():
            raise spec.error(f"{key}: no block {name!r} in configs.yaml; {nearest(name, read_blocks())}")
    return [name for name in names if name != "defaults"]


def read_grid(spec: Spec, key: str, value: Any) -> dict[str, list[Any]]:
    grid = {name: read_list(spec, name, values) for name, values in read_mapping(spec, key, value).items()}
    for name, values in grid.items():
        check_name(spec, key, name)
        if isinstance(read_blocks()["defaults"].get(name), list) and not any(isinstance(v, list | str) for v in values):
            grid[name] = [values]  # `size: [32, 32]` is one value
        if not values:
            raise spec.error(f"{key}: {name} has no values, so there is no run")
    return grid


def read_runs(spec: Spec, key: str, value: Any) -> list[dict[str, list[Any]]]:
    return [read_grid(spec, key, line) for line in read_list(spec, key, value)]


def check_name(spec: Spec, where: str, name: str) -> None:
    """Raises BadInput if ``name`` cannot be varied by a spec."""
    if given_by := facts(name).in_sweep:
        raise spec.error(f"{where}: {name} is given by {given_by}")
    valid = ["pair", *read_blocks()["defaults"]]
    if name not in valid:
        raise spec.error(f"{where}: unknown key {name!r}; {nearest(name, valid)}")


def read_resources(spec: Spec, key: str, value: Any) -> dict[str, float]:
    given = read_mapping(spec, key, value)
    for name, amount in given.items():
        if name not in RESOURCES:
            raise spec.error(f"resources: unknown key {name!r}; {nearest(name, RESOURCES)}")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise spec.error(f"resources: {name} {amount!r} is not a number, 0 or more")
        if 0 < amount < SMALLEST_SHARE:
            raise spec.error(f"resources: {name} {amount} is too small; give 0, or {SMALLEST_SHARE} or more")
        if amount > 1 and amount != int(amount):
            raise spec.error(f"resources: {name} {amount}: above 1, give a whole number")
    return {name: float(amount) for name, amount in given.items()}


def read_count(spec: Spec, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise spec.error(f"{key}: {value!r} is not a whole number, 0 or more")
    return int(value)


def read_text(spec: Spec, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise spec.error(f"{key}: {value!r} is not the name of a folder")
    return value


def read_report(spec: Spec, key: str, value: Any) -> dict[str, Any]:
    given, known = read_mapping(spec, key, value), ("by", "last", "max_score")
    for name in given:
        if name not in known:
            raise spec.error(f"report: unknown key {name!r}; {nearest(name, known)}")
    last = {"last": read_count(spec, "report: last", given.pop("last"))} if "last" in given else {}
    options = {name: [str(item) for item in read_list(spec, name, values)] for name, values in given.items()}
    for name in options.get("by", []):
        if name not in read_blocks()["defaults"]:
            raise spec.error(f"report: by: unknown setting {name!r}; {nearest(name, read_blocks()['defaults'])}")
    return options | last


def read_collect(spec: Spec, key: str, value: Any) -> dict[str, Any]:
    given = read_mapping(spec, key, value)
    for name in given:
        if name in GIVEN_BY_THE_SWEEP:
            raise spec.error(f"collect: {name} is given by the sweep; remove it")
    if "configs" in given:
        given["configs"] = read_configs(spec, "collect: configs", given["configs"])
    return given


READERS: dict[str, Callable[[Spec, str, Any], Any]] = {
    "configs": read_configs,
    "collect": read_collect,
    "data": read_text,
    "grid": read_grid,
    "runs": read_runs,
    "resources": read_resources,
    "retries": read_count,
    "report": read_report,
}


# The runs of a spec


def expand(spec: Spec) -> list[Run]:
    """Every run of the grid and of ``runs``, each once. Raises BadInput if there is none, or one is not valid.

    Runs that differ only in what their method does not use are one run.
    """
    places = [
        dict(zip(grid, values, strict=True))
        for grid in (spec.grid, *spec.runs)
        if grid
        for values in itertools.product(*grid.values())
    ]
    if not places:
        raise spec.error("has no runs: give `grid` (pair, method, seed) or `runs`")
    found: dict[str, Run] = {}
    for place in places:
        run = make_run(spec, place)
        found.setdefault(run.name, run)
    return list(found.values())


def make_run(spec: Spec, place: Mapping[str, Any]) -> Run:
    if "pair" not in place:
        raise spec.error("a run has no `pair`: write it as SOURCE -> TARGET, in the grid or in the line of `runs`")
    method_name = str(place.get("method", "coworld"))
    try:
        method, seed = find_method(method_name), convert(place.get("seed", 0), 0)
        check("seed", seed)
        sources, target = parse_pair(str(place["pair"]))
    except (BadInput, ValueError) as error:
        detail = f"seed {place.get('seed')!r} {error}" if isinstance(error, ValueError) else error
        raise spec.error(str(detail)) from None
    sources = sources if method.uses_sources else ()
    others = {key: value for key, value in place.items() if key not in ("pair", "method", "seed", "source_from")}
    settings = effective_settings(spec, others, method_name, sources, target)
    run = Run(run_name(method_name, sources, target, settings, seed), method_name, sources, target, seed, settings)
    leader = fill_in(spec, run, "source_from", str(place.get("source_from", "")), {"pair": pair_name(sources, target)})
    return replace(run, leader="" if leader == run.name else leader)


def fill_in(spec: Spec, run: Run, key: str, text: str, more: Mapping[str, str]) -> str:
    """``text``, the value of ``key``, with the run's seed, its settings and ``more`` in place of their {names}."""
    values = {**merge(read_blocks(), spec.configs, {"method": run.method}), **run.settings, "seed": run.seed}
    known = {name: setting_text(value) for name, value in values.items() if not facts(name).in_sweep}
    known = {name: value for name, value in known.items() if name not in ("method", "source_from")} | {**more}

    def value_of(name: re.Match[str]) -> str:
        if name[1] not in known:
            wanted = ", ".join(more)
            raise spec.error(f"{key}: {name[0]} is neither {wanted} nor a setting; {nearest(name[1], known)}")
        return known[name[1]]

    return re.sub(r"\{([^{}]*)\}", value_of, text)


def parse_pair(text: str) -> tuple[tuple[Task, ...], Task]:
    """(the sources, the target) of ``SOURCE, SOURCE -> TARGET``.

    The target may be a free name, without a simulator (see `wrappers.parse_target`).
    """
    sources, arrow, target = text.partition("->")
    names = [name.strip() for name in sources.split(",")]
    if not arrow or not all(names):
        raise BadInput(f"pair {text!r}: write it as SOURCE -> TARGET")
    target = target.strip()
    return tuple(parse_task(name) for name in names), parse_target(target)


def effective_settings(
    spec: Spec, given: Mapping[str, Any], method: str, sources: Sequence[Task], target: Task
) -> dict[str, Any]:
    """The settings of ``given`` that change the run: those with another value than its blocks, and with an effect.

    Raises BadInput on an invalid value.
    """
    defaults = read_blocks()["defaults"]
    flags = {k: v if isinstance(v, list) and isinstance(defaults[k], list) else str(v) for k, v in given.items()}
    named = {"method": method}
    try:
        base, merged = merge(read_blocks(), spec.configs, named), merge(read_blocks(), spec.configs, named | flags)
    except BadInput as error:
        raise spec.error(str(error).replace("(the command line)", "(the spec)")) from None
    config = Config(**{**merged, "source_task": ",".join(map(str, sources)), "target_task": str(target)})
    unused = unused_settings(config, find_method(method)).keys() | unused_suite_settings([*sources, target]).keys()
    return {key: merged[key] for key in given if merged[key] != base[key] and key not in unused}


def run_name(method: str, sources: Sequence[Task], target: Task, settings: Mapping[str, Any], seed: int) -> str:
    """``METHOD-SOURCE-to-TARGET-SETTINGS-seedN``; a long name is cut and gets a hash."""
    changed = [f"{key}={setting_text(value)}" for key, value in sorted(settings.items())]
    return f"{short_name('-'.join([method, pair_name(sources, target), *changed]))}-seed{seed}"


def pair_name(sources: Sequence[Task], target: Task) -> str:
    return "-".join([*(["+".join(map(str, sources)), "to"] if sources else []), str(target)])


def setting_text(value: Any) -> str:
    """A setting as a flag's text."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
