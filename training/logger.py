"""The records of a run: curves, scores, selections and videos."""

import csv
import io
import json
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, DATA_CLASS_SCALAR, Summary, SummaryMetadata
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from tools import DIVERGED, BadInput, write_atomically, write_text
from training.visuals import encode_gif
from training.wandb_mirror import WandbMirror

SCORES = "step domain phase round source_steps target_updates mean std success episodes".split()
HORIZONS = range(5, 50, 5)  # steps after the context at which the error of open-loop predictions is recorded

CURVES = {  # group -> metric -> its description in TensorBoard; a metric that is not here is in the group "other"
    "model": {
        "image_loss": "Negative log-likelihood of the images (Eq. 2), summed over pixels.",
        "state_loss": "Negative log-likelihood of the low-dimensional observations (Eq. 2).",
        "reward_loss": "Negative log-likelihood of the rewards (Eq. 2; Eq. 5 with reward alignment).",
        "discount_loss": "Negative log-likelihood of the ends of episodes (Eq. 2).",
        "kl_loss": "KL of the posterior to the prior (Eq. 2), balanced, at least the free nats.",
        "kl": "Mean KL of the posterior to the prior, without free nats.",
        "model_loss": "Weighted sum of the world model's losses.",
        "model_grad_norm": "Gradient norm of the world model before clipping.",
        "ewc_penalty": "Elastic penalty on leaving the source's weights (dv2_finetune_ewc).",
        "open_loop": "Rows: seen, predicted from actions after five frames, difference. A column for each sequence.",
    },
    "behavior": {
        "value": "Mean value of imagined states, by the critic that gives targets; of model-free agents and lompo, "
        "mean target of a batch. Far above the scores it is over-estimated.",
        "imagined_return": "Mean lambda-return of imagined trajectories (Eq. 8).",
        "imagined_reward": "Mean reward of imagined states, less penalties.",
        "disagreement": "Mean disagreement of the ensemble on imagined states (offline_dv2, lompo).",
        "temporal_difference": "Squared n-step errors of both critics (drq_bc, cql).",
        "cloning_loss": "Mean squared distance of a noisy action to the data's (bc, drq_bc).",
        "conservative_gap": "Log-sum-exp of the values of many actions, less the value of the data's (cql).",
        "contrastive_loss": "Cross-entropy of crops of one image among those of the batch (curl).",
        "contrastive_grad_norm": "Gradient norm of the contrastive loss before clipping.",
        "temperature": "Weight of the entropy (curl).",
        "actor_loss": "Loss of the actor (Eq. 7, 10).",
        "actor_entropy": "Mean entropy of the policy on imagined states.",
        "replay_critic_loss": "Loss of the critic on replayed sequences (replay_value_scale).",
        "return_range": "Range of the returns, by which the actor's objective is divided (returns: percentile).",
        "critic_loss": "Loss of the critic (Eq. 11; Eq. 6 with the value constraint).",
        "actor_grad_norm": "Gradient norm of the actor before clipping.",
        "critic_grad_norm": "Gradient norm of the critic before clipping.",
    },
    "ties": {
        "state_alignment": "KL of the target's embedding to the source's on target images (Eq. 3). Should fall.",
        "alignment_gradient_share": "Norm of the weighted state alignment's gradient over that of the world model's "
        "loss, in one update a point (Eq. 3).",
        "reward_alignment": "Loss of the source's reward head on relabelled target rewards (Eq. 4, 5).",
        "eta": "Share of source data in the source's reward loss (Eq. 5).",
        "value_constraint": "Mean of max(target value, bound) on imagined states (Eq. 6); brute: of the target value.",
        "source_value": "Mean value of imagined states by the source's critic (Eq. 6).",
        "source_value_correlation": "Correlation of the source critic's values of imagined states with the target's.",
        "constraint_active": "Share of imagined states at which the value constraint has a gradient.",
        "distance_source": "Alignment KL to this source, on the batches of the target's updates.",
        "follows_source": "Share of the target's updates that selected this source.",
    },
    "eval": {
        "return": "Mean return of the evaluation episodes, with the mode of the policy.",
        "success": "Share of evaluation episodes that succeeded.",
        "evaluation": "The first episode of an evaluation.",
    },
    "offline": {  # on held-out episodes (docs/offline_evaluation.md)
        "image_loss": "Negative log-likelihood of held-out images, summed over pixels.",
        "reward_loss": "Negative log-likelihood of held-out rewards.",
        "kl": "Mean KL of the posterior to the prior on held-out episodes, without free nats.",
        "open_loop_error": "Mean squared error of pixels in [0, 1], predicted from actions after five frames.",
        "value_correlation": "Correlation of the critic's estimates with held-out discounted returns.",
        "value_bias": "Mean of the critic's estimates minus held-out discounted returns. Positive: over-estimated.",
        "action_distance": "Distance of the policy's mode to the data's actions, root mean square over dimensions.",
        "source_return_correlation": "Correlation of the source critic's values of the target's latents with held-out "
        "discounted returns.",
        "source_own_return_correlation": "The same on the latents of the source's own world model.",
        "source_latents_correlation": "Correlation of the source critic's values of both latents of held-out rows.",
    },
    "data": {
        "episode_return": "Return of the episodes that the agent collects.",
        "episode_length": "Length of the episodes that the agent collects, in agent steps.",
        "episode_success": "Share of the collected episodes that succeeded.",
        "used_rows": "Rows of stored episodes that batches are drawn from.",
        "unused_rows": "Rows of stored episodes that no batch is drawn from: those held out.",
        "short_rows": "Used rows of episodes that are shorter than a sequence, and joined (docs/datasets.md).",
    },
    "throughput": {
        "updates_per_second": "Updates of all agents a second since the last point.",
        "frames_per_second": "Agent steps a second in the simulators that agents learn in, since the last point.",
    },
}
CHARTS = {  # category of the tab "Custom Scalars" -> title of a chart -> metrics, which it shows for all domains
    "Returns": {"return": ("return", "episode_return"), "success": ("success", "episode_success")},
    "World models": {"image loss": ("image_loss",), "reward loss": ("reward_loss",), "KL": ("kl",)},
    "Behavior": {"value": ("value",), "imagined return": ("imagined_return",), "entropy": ("actor_entropy",)},
    "Ties": {
        "state alignment": ("state_alignment",),
        "state alignment's share of the world model's gradient": ("alignment_gradient_share",),
        "reward alignment": ("reward_alignment",),
        "value constraint": ("value_constraint", "value", "source_value"),
        "share of states with a gradient of the value constraint": ("constraint_active",),
    },
}


OFFLINE_PREFIX = "offline_"  # begins the columns of scores.csv with the figures of the group "offline"
OFFLINE_COLUMNS = [f"{OFFLINE_PREFIX}{metric}" for metric in CURVES["offline"]]
OFFLINE_COLUMNS[4:4] = [f"{OFFLINE_PREFIX}open_loop_error_{horizon}" for horizon in HORIZONS]


def find_curve(metric: str, group: str = "") -> tuple[str, str]:
    """Group and description of a metric. A number at its end, as in ``distance_source_2``, is ignored.

    ``group`` decides if several groups have the metric; else it is the first one's.
    """
    name = re.sub(r"_\d+$", "", metric)
    groups = {group: CURVES[group]} if name in CURVES.get(group, {}) else CURVES
    return next(((group, known[name]) for group, known in groups.items() if name in known), ("other", ""))


def curve_name(domain: str, metric: str, group: str = "") -> str:
    """The name of a curve in TensorBoard and in metrics.jsonl: DOMAIN/GROUP/METRIC."""
    return f"{domain}/{find_curve(metric, group)[0]}/{metric}"


class Logger:
    """Writes TensorBoard events and metrics.jsonl with the same curves, scores.csv, choices.csv, status.json and
    videos.

    Metrics may be tensors on any device. They are summed there, and read once, when `write` makes a point.
    """

    def __init__(
        self,
        directory: Path,
        sizes: dict[str, int] | None = None,
        step: int | None = None,
        offline: bool = False,
        mirror: WandbMirror | None = None,
    ):
        """``sizes`` and ``step`` of a checkpoint's `state` remove what a killed run wrote after the checkpoint.

        ``offline``: the run has offline figures, so scores.csv has their columns.
        ``mirror``: gets every curve and video too.
        """
        self.metrics_file, self.scores_file = directory / "metrics.jsonl", directory / "scores.csv"
        self.choices_file = directory / "choices.csv"  # only with several sources
        self.status_file = directory / "status.json"
        self.videos = directory / "videos"
        self.videos.mkdir(exist_ok=True)
        for file in self._files():
            with file.open("ab") as handle:
                handle.truncate(min((sizes or {}).get(file.name, 0), file.stat().st_size))  # never longer than it is
        if not self.choices_file.stat().st_size:
            self.choices_file.unlink()
        self.columns = [*SCORES, *OFFLINE_COLUMNS * offline]
        if self.scores_file.stat().st_size:  # a run that was begun with an older version may have fewer columns
            self.columns = self.scores_file.read_text().splitlines()[0].split(",")
        else:
            self._append(self.scores_file, ",".join(self.columns) + "\n")
        self.directory, self.purge_step = directory, None if step is None else step + 1
        self.writers: dict[str, SummaryWriter] = {}  # by folder of the event files, in ``directory``
        self.mirror = mirror
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        self.latest: dict[str, float] = {}
        self.measured: tuple[float, dict[str, int]] | None = None  # time and totals of the last point

    def describe_run(self, config: str, domains: Sequence[str], *, ties: bool, success: bool, step: int) -> None:
        """Write the settings as TensorBoard text, and a layout whose charts show the curves of all domains together.

        ``ties``: whether the run has the ties between source and target; ``success``: whether a task reports success.
        """
        self._writer("run").add_text("run/config", f"```yaml\n{config}```", step)
        layout = {category: dict(charts) for category, charts in CHARTS.items() if ties or category != "Ties"}
        if not success:
            del layout["Returns"]["success"]
        for charts in layout.values():
            for title, metrics in charts.items():
                curves = [f"^{curve_name(domain, metric)}$" for metric in metrics for domain in domains]
                charts[title] = ["Multiline", curves]  # regular expressions of names
        self._writer("run").add_custom_scalars(layout)

    def add(self, domain: str, metrics: dict[str, Tensor | float]) -> None:
        """Add values to the mean of each metric's curve at the next `write`."""
        for name, value in metrics.items():
            key = curve_name(domain, name)
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def lacks(self, domain: str, metric: str) -> bool:
        """Whether a curve has no value for the next point yet."""
        return curve_name(domain, metric) not in self.sums

    def write(
        self,
        step: int,
        totals: dict[str, int] | None = None,
        present: dict[str, float] | None = None,
        **context: int | str,
    ) -> None:
        """One point of every curve that has values, at ``step``; nothing if none has.

        Args:
            totals: counters, each of which gives a curve of its rate a second since the last call.
            present: values of other curves at this step, by their names.
            context: goes into the line of metrics.jsonl.

        Raises:
            BadInput: a value is not finite.
        """
        rates = self._rates(totals or {})
        if not self.sums:
            return
        point = {key: float(total) / self.counts[key] for key, total in self.sums.items()} | (present or {})
        self.sums.clear(), self.counts.clear()
        self._add_curves(step, {**point, **rates})
        finite = {key: value if math.isfinite(value) else str(value) for key, value in {**point, **rates}.items()}
        self._append(self.metrics_file, json.dumps({"step": step, **context, **finite}) + "\n")
        wrong = [key for key, value in point.items() if not math.isfinite(value)]
        if wrong:
            raise BadInput(f"{wrong[0]} is not finite at step {step}: {DIVERGED}")
        self.latest.update(point)

    def score(self, **row: Any) -> None:
        """One line of scores.csv and a point of the evaluation curves; columns that are not given are empty.

        If a run is made longer without a step in between, the evaluation at its old end is replaced by the one before
        its next round, which is the same.
        """
        self._drop_last_score(row)
        text = io.StringIO()
        csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n").writerow(row)
        self._append(self.scores_file, text.getvalue())
        named = {"return": row.get("mean"), "success": row.get("success")}
        curves = {curve_name(row["domain"], name): value for name, value in named.items() if value not in (None, "")}
        for key in OFFLINE_COLUMNS:
            if key in row:
                curves[curve_name(row["domain"], key.removeprefix(OFFLINE_PREFIX), "offline")] = row[key]
        self._add_curves(row["step"], curves)
        context = {key: row[key] for key in ("step", "phase", "round", "source_steps", "target_updates")}
        self._append(self.metrics_file, json.dumps({**context, **curves}) + "\n")

    def _drop_last_score(self, row: dict[str, Any]) -> None:
        """Delete the last line of scores.csv if it is an evaluation at the same step, but of another round."""
        lines = self.scores_file.read_text().splitlines(keepends=True)
        if len(lines) < 2:
            return
        last = dict(zip(self.columns, lines[-1].strip().split(","), strict=False))
        same = all(last.get(key) == str(row[key]) for key in ("step", "domain", "phase"))
        if same and last.get("round") != str(row["round"]):
            write_text(self.scores_file, "".join(lines[:-1]))

    def choice(self, **row: Any) -> None:
        """One line of choices.csv: the source of a target update, and the distance to each."""
        if not self.choices_file.exists():
            self._append(self.choices_file, ",".join(row) + "\n")
        self._append(self.choices_file, ",".join(str(value) for value in row.values()) + "\n")

    def video(self, domain: str, name: str, frames: np.ndarray, step: int, fps: int = 20) -> None:
        """uint8 (T, H, W, 3) as a GIF, in TensorBoard and as videos/DOMAIN-NAME-STEP.gif."""
        gif = encode_gif(frames, fps)
        path = self.videos / f"{domain}-{name}-{step:07d}.gif"
        write_atomically(path, lambda file: file.write(gif))
        _, height, width, _ = frames.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._add_point(curve_name(domain, name), step, "images", DATA_CLASS_BLOB_SEQUENCE, image=image)
        if self.mirror:
            self.mirror.video(step, curve_name(domain, name), path)

    def status(self, **fields: Any) -> None:
        """Replace status.json, which other programs can read at any time. It is not flushed to the disk."""
        temporary = self.status_file.with_name(f".{self.status_file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(fields) + "\n")
        temporary.replace(self.status_file)

    def restart_rates(self) -> None:
        """Call when counters changed by themselves, so that no rate counts it."""
        self.measured = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the sizes of the files, and the sums since the last point."""
        for writer in self.writers.values():
            writer.flush()
        sums = {k: float(v) for k, v in self.sums.items()}
        sizes = {file.name: file.stat().st_size for file in self._files() if file.exists()}
        return {"sizes": sizes, "sums": sums, "counts": dict(self.counts), "latest": dict(self.latest)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.latest = dict(state["latest"])

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        if self.mirror:
            self.mirror.close()

    def _writer(self, domain: str) -> SummaryWriter:
        """TensorBoard's writer for a domain. Each source has a folder, which TensorBoard shows in a colour of its own.

        The target's curves, and those of the whole run, are in the run's directory itself.
        """
        folder = domain if domain.startswith("source") else ""
        if folder not in self.writers:
            self.writers[folder] = SummaryWriter(str(self.directory / folder), purge_step=self.purge_step)
        return self.writers[folder]

    def _rates(self, totals: dict[str, int]) -> dict[str, float]:
        """Curves of the rates at which ``totals`` grew since the last call; without those that did not."""
        now, (before, old) = time.monotonic(), self.measured or (0.0, totals)
        self.measured = now, totals
        grown = {key: total - old[key] for key, total in totals.items() if total > old[key]}
        return {curve_name("run", f"{key}_per_second"): growth / (now - before) for key, growth in grown.items()}

    def _add_curves(self, step: int, curves: dict[str, float]) -> None:
        """A point of each curve in TensorBoard, and in the mirror."""
        for name, value in curves.items():
            self._add_point(name, step, "scalars", DATA_CLASS_SCALAR, simple_value=value)
        if self.mirror:
            self.mirror.curves(step, curves)

    def _add_point(self, name: str, step: int, plugin: str, data_class: int, **value: Any) -> None:
        """A point of TensorBoard with the metric's description, which its server shows only beside a data class."""
        metadata = SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
            data_class=data_class,
            summary_description=find_curve(*name.split("/")[:0:-1])[1],
        )
        summary = Summary(value=[Summary.Value(tag=name, metadata=metadata, **value)])
        self._writer(name.split("/")[0])._get_file_writer().add_summary(summary, step)

    def _files(self) -> tuple[Path, ...]:
        return self.metrics_file, self.scores_file, self.choices_file

    @staticmethod
    def _append(path: Path, text: str) -> None:
        with path.open("a") as file:
            file.write(text)


def read_status(logdir: Path) -> dict[str, Any]:
    """A run's status.json: phase, step, steps, score, finished; {} if there is none."""
    try:
        status = json.loads((logdir / "status.json").read_text())
        return status if isinstance(status, dict) else {}
    except (OSError, ValueError):
        return {}


def read_scores(logdir: Path, evaluated: bool = False) -> list[dict[str, str]]:
    """The lines of a run's scores.csv. Raises BadInput if there are none.

    ``evaluated``: the run is past its first evaluation, so a file without scores is not the one that it wrote.
    """
    path = logdir / "scores.csv"
    try:
        with path.open() as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}; give a run's directory") from None
    if any(not row.get("phase") or not (row.get("mean") or any(map(row.get, OFFLINE_COLUMNS))) for row in rows):
        raise BadInput(f"{path} is damaged: a line has no phase or mean; mend or remove that line")
    if not rows:
        if evaluated:
            raise BadInput(
                f"{path} was removed or emptied after the run wrote it; restore it, or train in a new --logdir"
            )
        raise BadInput(f"{path} has no score yet; let the run reach its first evaluation")
    return rows
