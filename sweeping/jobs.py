"""The jobs of a sweep: datasets to collect, sources to pretrain, and runs, each a command line of this project."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs import read_settings
from config import Config, facts, merge, read_blocks, settings_that_affect, settings_with
from sweeping.networks import source_networks
from sweeping.spec import Run, Spec, fill_in, setting_text
from tools import BadInput, nearest, short_name
from training.checkpoint import CHECKPOINT
from training.logger import read_status
from training.methods import Method, Phase, find_method
from training.pretraining import PRETRAINED, compared_settings, describe_phases, difference, find_pretraining
from training.used_settings import unused_settings, unused_suite_settings

DATA, PRETRAINING, RUN = "data", "pretraining", "run"


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        kind: DATA, PRETRAINING or RUN.
        folder: for its log; a run's directory.
        command: a command of this project and its arguments.
        needs: names of the jobs that must be done before.
        done: whether an earlier sweep has done it.
        output: what it makes, a file or a folder that appears when it is complete; None for a run.
    """

    name: str
    kind: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    done: bool = False
    output: Path | None = None

    @property
    def has_output(self) -> bool:
        """Whether what it makes is there already, for example from another sweep that ran at the same time."""
        return self.output is not None and is_there(self.output)


@dataclass(frozen=True)
class Checks:
    """The checks of the commands that the jobs are. Each raises BadInput if its command would refuse to start.

    Attributes:
        run: (settings, method, flags given) -> settings as the run uses them, and its phases.
        collection: arguments of collect.py -> whether an agent learns to collect.
    """

    run: Callable[[Config, Method, list[str]], tuple[Config, list[Phase]]]
    collection: Callable[[list[str]], bool]


@dataclass(frozen=True)
class PlannedRun:
    """A run with its settings and phases, as co_training.py resolves them.

    ``leader`` is `Run.leader` if the run has a pretraining, else "".
    """

    run: Run
    config: Config
    method: Method
    phases: list[Phase]
    flags: dict[str, Any]
    leader: str = ""

    @property
    def pretraining(self) -> list[Phase]:
        """Its phases that train the sources alone."""
        return [self.phases[i] for i in find_pretraining(self.method, self.phases)]

    @property
    def has_snapshot(self) -> bool:
        """Whether others can begin from its pretraining."""
        return (Path(self.config.logdir) / PRETRAINED / CHECKPOINT).exists()


def planned_runs(spec: Spec, runs: Sequence[Run], out: Path, checks: Checks) -> list[PlannedRun]:
    """Raises BadInput, with the run's name, if a run would refuse to start."""
    planned = []
    for run in runs:
        method = find_method(run.method)
        flags = {"method": run.method, "source_task": ",".join(map(str, run.sources)), "target_task": str(run.target)}
        flags |= {"seed": run.seed, "logdir": str(out / run.name), **run.settings}
        if method.dataset:
            flags["offline_traindir"] = data_folder(spec, run)
        flags = {key: value for key, value in flags.items() if value != ""}
        values = merge(read_blocks(), spec.configs, {k: v if isinstance(v, list) else str(v) for k, v in flags.items()})
        try:
            config, phases = checks.run(Config(**values, configs=spec.configs), method, list(flags))
        except BadInput as error:
            raise spec.error(f"run {run.name}: {error}") from None
        leader = run.leader if find_pretraining(method, phases) else ""
        planned.append(PlannedRun(run, config, method, phases, flags, leader))
    check_leaders(spec, planned)
    return planned


def check_leaders(spec: Spec, planned: Sequence[PlannedRun]) -> None:
    """Raises BadInput if a run cannot begin from the pretraining of its leader."""
    runs = {p.run.name: p for p in planned}
    for p in (p for p in planned if p.leader):
        where = f"run {p.run.name}: source_from {p.leader}"
        if p.leader not in runs:
            raise spec.error(f"{where}: the sweep has no such run; {nearest(p.leader, runs)}")
        leader = runs[p.leader]
        if leader.leader:
            raise spec.error(f"{where}: it begins from another run itself; give {leader.leader}")
        differ = difference(*(compared_settings(one.config, one.method) for one in (leader, p)))
        if not differ and describe_phases(leader.pretraining) != describe_phases(p.pretraining):
            differ = "other phases"
        if not differ and len({source_networks(one.config, one.method) for one in (leader, p)}) > 1:
            differ = "networks of other sizes"
        if differ:
            raise spec.error(f"{where}: it is pretrained with {differ}; give a source_from for each")


def data_folder(spec: Spec, run: Run) -> str:
    """The folder of a run's dataset: ``data`` with {target}, {source} and {SETTING} replaced. Raises BadInput."""
    if not spec.data:
        raise spec.error(f"run {run.name} needs a dataset: give `data`, like data/{{target}}")
    target = short_name(run.target.name)
    sources = "+".join(short_name(source.name) for source in run.sources)
    return fill_in(spec, run, "data", spec.data, {"target": target, "source": sources})


def make_jobs(spec: Spec, planned: Sequence[PlannedRun], out: Path, checks: Checks) -> list[Job]:
    """Every job, those that others need first. Raises BadInput if a dataset is missing and cannot be collected."""
    done = {p.run.name for p in planned if is_finished(out / p.run.name, p)}
    data = {job.name: job for job in data_jobs(spec, planned, done, out, checks)}
    followers = {p.run.name: p.leader for p in planned if p.leader and p.run.name not in done}
    followers = {name: leader for name, leader in followers.items() if not (out / name / CHECKPOINT).exists()}
    jobs = [*data.values(), *pretraining_jobs(spec, planned, out, {*followers.values()} - done, data)]
    for name, leader in followers.items():
        if leader in done and not (out / leader / PRETRAINED / CHECKPOINT).exists():
            raise spec.error(f"run {name}: source_from {leader}: its {PRETRAINED}/ was removed; name another run")
    pretraining = {job.name for job in jobs}
    for p in planned:
        name, leader = p.run.name, followers.get(p.run.name, "")
        more = ["--source_from", str(out / leader)] if leader else []
        needs = (data_name(p), f"{PRETRAINING} {leader or name}")
        needs = tuple(need for need in needs if need in pretraining)
        jobs.append(Job(name, RUN, out / name, run_command(spec, p, *more), needs, name in done))
    return jobs


def run_command(spec: Spec, planned: PlannedRun, *more: str) -> tuple[str, ...]:
    flags = [text for key, value in planned.flags.items() for text in (f"--{key}", setting_text(value))]
    return ("co_training.py", *flags, *more, "--configs", "defaults", *spec.configs)


def pretraining_jobs(
    spec: Spec, planned: Sequence[PlannedRun], out: Path, leaders: set[str], data: dict[str, Job]
) -> Iterator[Job]:
    """The pretraining of every run that others begin from, unless it is done."""
    for p in planned:
        name, needs = p.run.name, tuple(need for need in (data_name(p),) if need in data)
        if name in leaders and not (out / name / PRETRAINED / CHECKPOINT).exists():
            command = run_command(spec, p, "--pretrain_only")
            output = out / name / PRETRAINED / CHECKPOINT
            yield Job(f"{PRETRAINING} {name}", PRETRAINING, out / name, command, needs, output=output)


def data_name(planned: PlannedRun) -> str:
    return f"{DATA} {planned.config.offline_traindir}"


def data_jobs(spec: Spec, planned: Sequence[PlannedRun], done: set[str], out: Path, checks: Checks) -> Iterator[Job]:
    """The collection of every dataset that is missing and that a run not in ``done`` needs."""
    found: dict[str, PlannedRun] = {}
    needed = {p.config.offline_traindir for p in planned if p.run.name not in done}
    for p in planned:
        if not p.method.dataset or (folder := p.config.offline_traindir) == "":
            continue
        if folder in found:
            if found[folder].run.target != p.run.target:
                raise spec.error(f"data: {folder} would be of two tasks; write {{target}} in it")
            continue
        found[folder] = p
        place = Path(folder).expanduser()
        if any(path.exists() and not path.is_dir() for path in (place, *place.parents)):
            raise spec.error(f"data: {folder} is not a folder, or is below a file")
        if folder not in needed or is_there(place):
            continue
        if not p.run.target.suite:
            raise spec.error(f"data: {folder} does not exist, and {p.run.target} has no simulator to collect it in")
        if not spec.collect:
            raise spec.error(f"data: {folder} does not exist; give `collect`, which says how to make it")
        yield data_job(spec, p, out, checks)


def data_job(spec: Spec, planned: PlannedRun, out: Path, checks: Checks) -> Job:
    folder, target = planned.config.offline_traindir, planned.run.target
    place = out / "datasets" / short_name(folder.strip("/"))
    settings = {**planned.run.settings, "seed": planned.run.seed}
    varied = {key: value for key, value in settings.items() if f"{{{key}}}" in spec.data}
    given = {"task": target, "out": folder, **{k: v for k, v in spec.collect.items() if k != "configs"}, **varied}
    flags = [text for key, value in given.items() for text in (f"--{key}", setting_text(value))]
    end = ["--configs", "defaults", *spec.collect.get("configs", spec.configs)]
    try:
        learns = checks.collection([*flags, *end])
    except BadInput as error:
        raise spec.error(f"collect, for {target}: {error}") from None
    more = ["--logdir", str(place)] if learns else []
    command = ("collect.py", *flags, *more, *end)
    return Job(data_name(planned), DATA, place, command, output=Path(folder).expanduser())


def is_there(path: Path) -> bool:
    """Whether a file exists, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.is_file()


# What is done


def is_finished(folder: Path, planned: PlannedRun) -> bool:
    """Whether the run in ``folder`` is finished with these settings. If they differ, co_training.py has to decide."""
    if not read_status(folder).get("finished"):
        return False
    saved, config = read_settings(folder), planned.config
    lengths = {*settings_that_affect("length")} & {*settings_with(lambda setting: "co_training" in setting.commands)}
    keys = {key for key in vars(config) if key in lengths or not facts(key).resumable}
    keys -= {"eta_steps"} | ({"precision"} if config.precision == "auto" else set())
    tasks = [*planned.run.sources, planned.run.target]
    keys -= unused_settings(config, planned.method).keys() | unused_suite_settings(tasks).keys()
    if not planned.method.world_model and saved["size"] <= config.size:
        keys -= {"size"}  # `fit_image_size` made it that of the dataset's images
    return all(saved.get(key) == getattr(config, key) for key in keys)
