"""Trains one config outside a sweep: `buttress train` and `python -m buttress.training`.

The run has the seeds, threads, workers and rules of a sweep's trial, so an exported config gives its trial's figures
again, bit for bit. The processes are started by `buttress.training.local_run`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from buttress import journal
from buttress.callbacks.checkpoint_retention import CheckpointRetention, LocalTrialFiles
from buttress.callbacks.wandb import WandbTraining
from buttress.errors import BadInput, from_pydantic, printable
from buttress.execution.setup import family_rules
from buttress.journal.events import Report
from buttress.rules import RuleSet
from buttress.spec.config_paths import layered
from buttress.spec.overrides import override_config, set_value
from buttress.spec.trial_config import schedule_of
from buttress.spec.yaml_io import read_yaml
from buttress.sweep.evaluation import TrialEvaluator
from buttress.training import registry
from buttress.training.trainable import Reported, Trainable
from buttress.training.user_code import user_faults
from buttress.wording import number

PROGRESS_METRICS = ("train/loss", "latent/kl_total", "latent/active_kl", "train/beta")


class Collapsed(Exception):
    """The run collapsed or diverged and was stopped; the message gives the evidence."""

    exit_code = 1


def train_config(
    path: Path,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    resume: Path | None = None,
    device: str | None = None,
    wandb: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains the config in a file to its end, under the rules of its sweep (`buttress.rules`), else its trainable's.

    Prints a line per epoch. Writes `history.json` (every report), `model.pt` (the model of the best valid epoch as a
    plain state dict, if the trainer reported a checkpoint of it) and `checkpoints/` (the last and the best). Under
    `torchrun` every rank calls this.

    Args:
        path: A config, such as `buttress export` writes.
        folder: Where to write; checkpoints of an earlier run there are deleted unless `resume` is given.
        overrides: `path=value`, the value in YAML.
        resume: A checkpoint of the same config to go on from.
        device: `cpu`, `cuda`, `cuda:1`; default: the first CUDA device, else the CPU.
        wandb: Writes a W&B run, with these of `WANDB_OPTIONS`; None: none.

    Returns:
        `metrics` and `epoch` of the best valid epoch (`{}` and None without one), `seconds`, `folder`, `files` (names
        of what was written there) and `why` (why there is no valid epoch or no model; "" where there is).

    Raises:
        BadInput: The config, the folder or the checkpoint cannot be used.
        Collapsed: The rules stopped the run.
    """
    trainable, config = read_config(path, overrides, workers=_torchrun_ranks())
    return _train(path, trainable, config, folder, resume, device, wandb)


def _train(
    path: Path, trainable: Trainable[Any], config: Any, folder: Path, resume: Path | None, device: str | None,
    wandb: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    run = _wandb_run(wandb, trainable, folder)
    objective, rules = _objective(path, trainable, config), _rules(path, config)
    from buttress.training.local_run import train

    began = time.monotonic()
    if not _is_rank_0():
        train(config, trainable, folder, resume=resume, device=device)
        return {}
    sink = JudgingSink(folder, trainable, config, objective, rules, run)
    if resume is None:
        sink.delete_checkpoints()
    error = ""
    try:
        train(config, trainable, folder, sink=sink, resume=resume, device=device)
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        sink.write_history()
        sink.finish_wandb(error)
    why = _write_model(folder, trainable, sink.evaluation)
    verdict = sink.evaluation.verdict
    if sink.stop and verdict is not None:
        evidence = "; ".join(each.sentence() for each in verdict.evidence)
        raise Collapsed(f"the run {verdict.state} and was stopped: {evidence}")
    seconds, files = round(time.monotonic() - began, 3), [*([] if why else ["model.pt"]), "history.json"]
    return {**sink.result(), "seconds": seconds, "folder": str(folder), "files": files, "why": why}


def read_config(path: Path, overrides: Sequence[str] = (), *, workers: int | None = None) -> tuple[Trainable[Any], Any]:
    """Reads a config file.

    Args:
        path: YAML; `buttress.trainable` names the trainable.
        overrides: `path=value`, the value in YAML.
        workers: Replaces `buttress.workers`.

    Returns:
        The trainable and its validated `Config`.

    Raises:
        BadInput: The file or an override cannot be used.
    """
    content = read_yaml(path, accepted="a mapping of groups (data, model, ...)")
    sources = override_config(content, overrides, where=path)
    group = content.get("buttress")
    name = group.get("trainable") if isinstance(group, dict) else None
    if not isinstance(name, str) or not name:
        raise BadInput("is missing", where=path, key="buttress.trainable", accepted="the name of a trainable")
    if workers is not None:
        set_value(content, "buttress.workers", workers)
    try:
        trainable = registry.load(name, [str(path.absolute().parent)], reload_changed=True)
        return trainable, trainable.Config.model_validate(layered(trainable.Config, content))
    except ValidationError as error:
        raise sources.locate(from_pydantic(error, trainable.Config)) from None
    except BadInput as error:
        raise error.at(path) from None


def _torchrun_ranks() -> int | None:
    ranks = os.environ.get("WORLD_SIZE")
    return int(ranks) if ranks else None


def _is_rank_0() -> bool:
    """Whether this process writes and prints: not one of torchrun's other ranks."""
    return os.environ.get("RANK", "0") == "0"


class JudgingSink:
    """Receives the reports of a run outside a sweep, judges them as a sweep does and keeps what a sweep keeps.

    Args:
        folder: The run's folder; made if it is not there.
        trainable: Gives metrics and schedule.
        config: An instance of its `Config`.
        objective: The metric whose best valid epoch counts.
        rules: What the run is judged by.
        wandb: The run's W&B run, if it has one.

    Raises:
        BadInput: The folder cannot be made.
    """

    WRITE_INTERVAL_S = 5.0

    def __init__(
        self, folder: Path, trainable: Trainable[Any], config: Any, objective: str, rules: RuleSet,
        wandb: WandbTraining | None = None,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cannot be written ({error.strerror})", where="--out", value=str(folder)) from error
        direction, epochs = trainable.metrics[objective].direction, schedule_of(trainable, config).epochs
        self.stop = False
        self.evaluation = TrialEvaluator(rules, [objective], direction, epochs)
        self._folder, self._objective, self._epochs = folder, objective, epochs
        self._about = {"trainable": trainable.name, "config": config.model_dump(mode="json"), "objective": objective}
        self._checkpoints = CheckpointRetention(LocalTrialFiles(folder.parent), objective, direction)
        self._written_at = 0.0
        self._wandb = wandb
        if wandb is not None:
            wandb.start("", self._about["config"], {})

    def send(self, reported: Reported) -> None:
        report = self.evaluation.add(Report.of("train", 1, len(self.evaluation.reports), reported))
        if reported.checkpoint:
            self._checkpoints.reported(self._folder.name, self.evaluation.reports, self.evaluation.best)
        if self._wandb is not None:
            self._wandb.report("", vars(report))
        self.stop = report.state in ("collapsed", "diverged")
        if self.stop or reported.closing or self._objective in reported.metrics:
            print(self._progress(report), flush=True)
        if time.monotonic() - self._written_at > self.WRITE_INTERVAL_S:
            self.write_history()

    def _progress(self, report: Report) -> str:
        metrics = report.metrics
        parts = [f"epoch {report.epoch}/{self._epochs}", f"step {report.step}"]
        for name in (self._objective, *PROGRESS_METRICS):
            if metrics.get(name) is not None:
                parts.append(f"{name} {number(metrics[name])}")
        parts.append(f"{report.seconds:.1f} s")
        if report.nonfinite:
            parts.append(f"not finite: {', '.join(report.nonfinite)}")
        parts += [report.note] if report.note else []
        parts += [report.state] if report.state != "healthy" else []
        parts += ["best so far"] if self.evaluation.best is report else []
        return "  ".join(parts)

    def result(self) -> dict[str, Any]:
        """`metrics` and `epoch` of the best valid epoch."""
        best = self.evaluation.best
        return {"metrics": journal.plain(best.metrics) if best else {}, "epoch": best.epoch if best else None}

    def write_history(self) -> None:
        """Replaces `history.json`; numbers that are not finite are null."""
        best = self.evaluation.best
        found = {**self.result(), "checkpoint": best.checkpoint} if best else None
        path = self._folder / "history.json"
        part = path.with_suffix(".part")
        reports = [report.to_line() for report in self.evaluation.reports]
        part.write_text(json.dumps(journal.plain({**self._about, "best": found, "reports": reports})))
        part.replace(path)
        self._written_at = time.monotonic()

    def finish_wandb(self, error: str) -> None:
        """Finishes the W&B run, if there is one, and prints how it is uploaded; `error`: what ended the training."""
        if self._wandb is None:
            return
        verdict, best, last = self.evaluation.verdict, self.evaluation.best, self.evaluation.last
        stopped = verdict if self.stop else None
        self._wandb.outcome("", {
            "outcome": stopped.state if stopped else "failed" if error else "completed",
            **({"kind": stopped.kind, "rule": stopped.rule, "message": stopped.message} if stopped else {}),
            "margin": self.evaluation.margin, "error": error or None,
            "epochs": last.epoch if last else 0, "epochs_budget": self._epochs,
            "best": {"epoch": best.epoch, "step": best.step, "metrics": best.metrics} if best else None,
            "last": last.metrics if last else {},
        })  # fmt: skip
        self._wandb.close()
        if line := self._wandb.closing_line():
            print(line, flush=True)

    def delete_checkpoints(self) -> None:
        """Deletes the checkpoints of an earlier run in this folder."""
        for old in self._folder.glob("checkpoints/[0-9]*.pt"):
            old.unlink()


#: What may be said about a W&B run: texts, and for `tags` a list of them.
WANDB_OPTIONS = ("project", "entity", "run_id", "name", "tags", "mode")


def _wandb_run(
    options: Mapping[str, Any] | None, trainable: Trainable[Any], folder: Path
) -> WandbTraining | None:
    """The W&B run of a training, in $WANDB_MODE or online unless the options say otherwise."""
    if options is None or not _is_rank_0():
        return None
    if unknown := [name for name in options if name not in WANDB_OPTIONS]:
        raise BadInput("unknown option", key=f"wandb.{unknown[0]}", accepted=", ".join(WANDB_OPTIONS))
    mode = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if mode not in ("online", "offline", "disabled"):
        raise BadInput("no such mode", key="wandb.mode", value=mode, accepted="online, offline, disabled")
    return WandbTraining(
        folder, **{"project": trainable.name, **{key: value for key, value in options.items() if value}, "mode": mode},
        metrics=trainable.metrics, original_names=getattr(trainable, "original_names", {}),
        on_message=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip


def _objective(path: Path, trainable: Trainable[Any], config: Any) -> str:
    objective: str = config.buttress.objective or next(iter(trainable.metrics), "")
    if objective not in trainable.metrics:
        accepted = ", ".join(trainable.metrics)
        raise BadInput("no such metric", where=path, key="buttress.objective", value=objective, accepted=accepted)
    return objective


def _rules(path: Path, config: Any) -> RuleSet:
    """The rules that a config holds, else those that come with its trainable."""
    if not config.buttress.rules:
        return family_rules(config.buttress.trainable, [str(path.absolute().parent)])
    try:
        return RuleSet.from_dict(config.buttress.rules)
    except BadInput as error:
        key = ".".join(["buttress.rules", *([error.key] if error.key else [])])
        raise BadInput(error.problem, where=path, key=key, value=error.value, accepted=error.accepted) from None


def _write_model(folder: Path, trainable: Trainable[Any], evaluation: TrialEvaluator) -> str:
    """Replaces `model.pt` by the model of the best valid epoch; where there is none to write, returns why."""
    from buttress.training.checkpoints import save_weights, weights_of

    path, best = folder / "model.pt", evaluation.best
    path.unlink(missing_ok=True)
    if best is None:
        return f"no epoch was valid: {evaluation.why_none_is_valid()}"
    if not best.checkpoint:
        none = not any(report.checkpoint for report in evaluation.reports)
        which = "the trainer reported no checkpoint" if none else f"there is no checkpoint of epoch {best.epoch}"
        return f"no model.pt: {which} (report(..., checkpoint=...))"
    try:
        save_weights(weights_of(trainable, folder / best.checkpoint), path)
    except (BadInput, OSError) as error:  # a trainer of the user's own may keep something else in its checkpoints
        return f"no model.pt: {error}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `python -m buttress.training CONFIG`.

    Args:
        arguments: Command line; default: this process's.

    Returns:
        The exit code: 0 for a run that ended with a valid epoch, 1 for one without or that collapsed, 2 for input that
        cannot be used, 130 for an interrupt.
    """
    parser = argparse.ArgumentParser(prog="python -m buttress.training", description="Train one config.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML; `buttress.trainable` names the trainable")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="train.epochs=5")
    parser.add_argument("--out", type=Path, help="folder (default: runs/<name of CONFIG>); a run there is replaced")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from this checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the first CUDA device, else the CPU)")
    parser.add_argument("--wandb", action="store_true", help="write a W&B run: online with a key, else offline")
    for option in ("project", "entity", "run-id", "run-name"):
        parser.add_argument(f"--wandb-{option}", metavar=option.rpartition("-")[2].upper(), help="implies --wandb")
    parser.add_argument("--wandb-tags", metavar="TAG,TAG", help="implies --wandb")
    given = parser.parse_args(arguments)
    folder = given.out or Path("runs") / given.config.stem
    try:
        with user_faults():
            trainable, config = read_config(given.config, given.set, workers=_torchrun_ranks())
            wandb = wandb_options(
                given.wandb, given.wandb_project, given.wandb_entity, given.wandb_run_id, given.wandb_run_name,
                given.wandb_tags,
            )  # fmt: skip
            result = _train(given.config, trainable, config, folder, given.resume, given.device, wandb)
    except (BadInput, Collapsed) as error:
        if _is_rank_0():
            print(printable(f"error: {error}"), file=sys.stderr)
        return 2 if isinstance(error, BadInput) else error.exit_code
    except KeyboardInterrupt:
        return 130
    if not _is_rank_0():
        return 0
    if result["epoch"] is None:
        print(f"error: {written(result)}", file=sys.stderr)
        return 1
    metrics = result["metrics"]
    values = [f"{name} {metrics[name]:.6g}" for name in trainable.metrics if metrics.get(name) is not None]
    print(f"best valid epoch {result['epoch']}: {'  '.join(values)}\n{written(result)}")
    return 0


def wandb_options(
    wanted: bool, project: str | None, entity: str | None, run_id: str | None, name: str | None, tags: str | None
) -> dict[str, Any] | None:
    """Options of a W&B run as the command line gives them; None where none is given and it is not wanted."""
    options = {"project": project, "entity": entity, "run_id": run_id, "name": name,
               "tags": [tag.strip() for tag in tags.split(",")] if tags else None}  # fmt: skip
    return options if wanted or any(options.values()) else None


def written(result: dict[str, Any]) -> str:
    """What a run has written, and why it has not written a model; `result` is that of `train_config`."""
    text = f"wrote {result['folder']}/{' and '.join(result['files'])} in {result['seconds']:.1f} s"
    return f"{text}; {result['why']}" if result["why"] else text
