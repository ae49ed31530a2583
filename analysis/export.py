"""Exports a trial's config as YAML, ready for training, and its weights as a state dict."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from buttress.analysis.explanation import stop_reason
from buttress.analysis.selection import best_epoch, best_trial, healthy_trials, pareto_front, tied_trials
from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord
from buttress.journal.mirror import origin
from buttress.storage import unreachable
from buttress.wording import listing, number

#: Beginning of every exported file.
MARK = "# Exported by Buttress"


class NothingHealthy(Exception):
    """The sweep has no healthy trial, so there is no best one (exit code 1: the input is valid)."""

    exit_code = 1

    def __init__(self, journal: Journal) -> None:
        counts = [f"{count} {state}" for state, count in journal.counts().items()]
        super().__init__(
            f"{journal.header.sweep} has no healthy trial ({listing(counts) or 'no trial at all'}); "
            "`buttress table` says why, and --trial ID --force exports one nevertheless"
        )


def export(journal: Journal, trial: str | None = None, *, force: bool = False) -> str:
    """The text of `best.yaml`: a trial's whole config, numbers exact, under comments that say where it comes from.

    Args:
        journal: The sweep.
        trial: Number or id of the trial (default: the best one).
        force: Export a trial that has not completed; its comments say how it ended.

    Raises:
        NothingHealthy: No trial is named and none can be best.
        BadInput: The trial is unknown, or has not completed.
    """
    record = trial_to_export(journal, trial, force=force)
    text = yaml.dump(
        config_of(journal, record), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )
    comments = "".join(f"# {line}\n" for line in provenance(journal, record))
    return signed(f"{MARK}\n", f"{comments}\n{text}")


def export_files(
    journal: Journal, output: Path, trial: str | None = None, *, weights: bool = False, force: bool = False
) -> list[Path]:
    """Writes a trial's config, and its weights beside it.

    Args:
        journal: The sweep.
        output: The YAML file.
        trial: Number or id of the trial (default: the best one).
        weights: Also write the model of its best checkpoint, as a plain state dict in a `.pt` file of the same name.
        force: Export a trial that has not completed, and write over a file that is not an earlier export.

    Returns:
        The files that were written.

    Raises:
        NothingHealthy: No trial is named and none can be best.
        BadInput: The trial cannot be exported, has no checkpoint, or a file cannot be written.
    """
    text = export(journal, trial, force=force)
    if not weights:
        return [write_export(text, output, force=force)]
    from buttress.training import registry
    from buttress.training.checkpoints import save_weights, weights_of
    from buttress.training.user_code import user_faults

    source = checkpoint_of(journal, trial_to_export(journal, trial, force=force))
    with user_faults():
        load = partial(weights_of, registry.load(journal.header.trainable, journal.header.module_folders))
        written = write_export(text, output, force=force)
        return [written, export_weights(source, output.with_suffix(".pt"), load=load, save=save_weights, force=force)]


def config_of(journal: Journal, record: TrialRecord) -> dict[str, Any]:
    """A trial's whole config, ready to be trained again: with trainable, objective, the sweep's rules and values set by
    validation."""
    config = {**record.config}
    given = config.get("buttress")
    group = dict(given) if isinstance(given, Mapping) else {}
    group["trainable"] = group.get("trainable") or journal.header.trainable
    group["objective"] = group.get("objective") or journal.objectives[0].metric
    group["rules"] = journal.header.rules
    config["buttress"] = group
    for path, value in values_set_by_validation(journal, record).items():
        _set_at(config, path, value)
    return config


def trial_to_export(journal: Journal, trial: str | None = None, *, force: bool = False) -> TrialRecord:
    """The record of the named trial, or of the best one; arguments and errors as in `export`."""
    if trial is None:
        record = best_trial(journal)
        if record is None:
            raise NothingHealthy(journal)
        return record
    record = journal.trial(trial)
    if record.state != "completed" and not force:
        raise BadInput(
            f"trial {record.id} {_ending(record)}, so its config is not a result: {stop_reason(journal, record)}",
            key="--trial", value=trial, accepted=f"{_alternatives(journal)}, or --force",
        )
    return record


def values_set_by_validation(journal: Journal, record: TrialRecord) -> dict[str, float]:
    """Config path -> value of the metric that is `exported_as` it, at the trial's best valid epoch."""
    found = best_epoch(record, journal.objectives)
    values = found.metrics if found is not None else {}
    paths = {metric: about.get("exported_as") for metric, about in journal.header.metrics.items()}
    return {path: value for metric, path in paths.items() if path and (value := values.get(metric)) is not None}


def _set_at(config: dict[str, Any], path: str, value: float) -> None:
    """Sets a value at a dotted path; copies the groups on the way, which belong to the journal."""
    *groups, last = path.split(".")
    for group in groups:
        config[group] = {**(config.get(group) or {})}
        config = config[group]
    config[last] = value


def provenance(journal: Journal, record: TrialRecord) -> list[str]:
    """Where an exported config comes from, in lines of at most 116 characters."""
    head, found, done = journal.header, best_epoch(record, journal.objectives), record.outcome
    winner = best_trial(journal)
    rank = "the best trial of" if winner is not None and winner.id == record.id else "trial of"
    lines = [f"{rank} sweep {head.sweep}: trial {record.id}, which {_ending(record)}"]
    if record.state != "completed":
        lines.append(f"NOT A RESULT: {stop_reason(journal, record)}")
    if found is not None:
        values = [f"{name} = {_exact(found.metrics.get(name))} ({way})" for name, way in _objectives(journal)]
        lines.append(f"best valid epoch {found.epoch} (step {number(found.step)}): {', '.join(values)}")
    if tied := [f"trial {each.id}" for each in tied_trials(journal, record) if record.state == "completed"]:
        lines.append(f"{listing(tied)} {'has' if len(tied) == 1 else 'have'} the same value")
    if done is not None and done.margin is not None:
        lines.append(f"margin to collapse {done.margin:+.3f} decades (negative: healthy)")
    if record.warnings:
        lines.append(f"warnings: {', '.join(record.warnings)}")
    found_values = values_set_by_validation(journal, record)
    lines += [f"set by validation: {path}={_exact(value)}" for path, value in found_values.items()]
    lines.append(f"searched: {', '.join(f'{path}={_exact(value)}' for path, value in record.params.items())}")
    lines.append(f"exported {datetime.now().astimezone().isoformat(timespec='seconds')} from {_source(journal)}")
    data = ", ".join(f"{key} {value}" for key, value in head.data.items() if not isinstance(value, (Mapping, list)))
    lines += [f"git commit {head.commit}"] if head.commit else []
    lines += [f"data: {data}"] if data else []
    versions = {"python": platform.python_version(), **head.versions}
    lines.append(f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    lines.append("train it: buttress train THIS_FILE")
    return [part for line in lines for part in textwrap.wrap(line, 116, subsequent_indent="    ")]


def write_export(text: str, target: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes an export, whole or not at all.

    Args:
        text: As `export` returns it.
        target: The file. An earlier export is replaced.
        force: Replace any other file, too.

    Raises:
        BadInput: The file exists and is not an earlier export as it was written, or cannot be written.
    """
    path = Path(target)
    check_replaceable(path, force)
    return _write_draft(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def find_checkpoint(journal: Journal, record: TrialRecord) -> Path | None:
    """The file of the trial's best checkpoint, downloaded from remote storage if need be; None without one."""
    found = best_epoch(record, journal.objectives)
    if found is None or not found.checkpoint:
        return None
    return _find_file(journal, record, found.checkpoint)


def find_output(journal: Journal, record: TrialRecord) -> Path | None:
    """The file of what the trial's rank 0 printed, found likewise; None where it printed nothing."""
    return _find_file(journal, record, "output.txt")


def _find_file(journal: Journal, record: TrialRecord, name: str) -> Path | None:
    path = journal.trial_folder(record.id) / name
    if not path.is_file() and (store := origin(journal.folder)) is not None:
        try:
            return store.download(f"trials/{record.id}/{name}", path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreachable(store, error) from None
    return path if path.is_file() else None


def checkpoint_of(journal: Journal, record: TrialRecord) -> Path:
    """The file of the trial's best checkpoint.

    Raises:
        BadInput: There is none (any more).
    """
    path = find_checkpoint(journal, record)
    if path is not None:
        return path
    found = best_epoch(record, journal.objectives)
    problem = f"trial {record.id} left no checkpoint of a valid epoch"
    if found is not None and found.checkpoint:
        gone = journal.trial_folder(record.id) / found.checkpoint
        problem = f"the checkpoint of trial {record.id} is gone ({gone})"
    accepted = "the config alone, to be trained again"
    if not any(report.checkpoint for each in journal.trials.values() for report in each.reports):
        problem = "the trainer of this sweep reports no checkpoints (report(..., checkpoint=...))"
    bests = {each.id: best_epoch(each, journal.objectives) for each in healthy_trials(journal)}
    kept = [name for name, best in bests.items() if best is not None and best.checkpoint]
    if others := [each for each in kept[:3] if each != record.id]:
        accepted = f"a trial whose checkpoint is kept, such as {listing(others)}, or {accepted}"
    raise BadInput(problem, where=journal.header.sweep, key="--weights", accepted=accepted)


def export_weights(
    source: Path,
    target: str | os.PathLike[str],
    *,
    load: Callable[[Path], Any] | None = None,
    save: Callable[[Any, Path], Any] | None = None,
    force: bool = False,
) -> Path:
    """Copies a checkpoint, or the weights in it, whole or not at all.

    Args:
        source: The checkpoint file.
        target: The file to write.
        load: Reads `source` and returns what to save; without `load` and `save` the file is copied.
        save: Writes what `load` returned to a file.
        force: Replace an existing file.

    Raises:
        BadInput: `target` exists, or cannot be written.
    """
    path = Path(target)
    check_replaceable(path, force, edited="this file exists")
    if load is None or save is None:
        return _write_draft(path, lambda draft: shutil.copyfile(source, draft))
    content = load(source)
    return _write_draft(path, lambda draft: save(content, draft))


def signed(head: str, rest: str) -> str:
    """The text of a file that Buttress may write over later: after `head`, a comment line, the checksum of both."""
    crc = zlib.crc32((head + rest).encode())
    return f"{head}# checksum {crc:08x}: once edited, this file is not written over without --force\n{rest}"


def is_unedited(content: bytes) -> bool:
    """Whether a file holds what `signed` gave, and nothing else."""
    found = re.match(rb"(#[^\n]*\n)# checksum ([0-9a-f]{8}):[^\n]*\n", content)
    return found is not None and zlib.crc32(found[1] + content[found.end() :]) == int(found[2], 16)


def check_replaceable(path: Path, force: bool, *, edited: str | None = None) -> None:
    """Raises `BadInput` where `path` is a folder, or, without `force`, a file that is not as `signed` wrote it.

    Args:
        path: The file that is to be written.
        force: Any file may be replaced.
        edited: What is wrong with any file there; None: a signed one may be replaced.
    """
    if path.is_dir():
        raise BadInput("this is a folder", where=path, key="-o", accepted="the name of a file")
    try:
        if path.exists() and not force and (edited or not is_unedited(path.read_bytes())):
            problem = edited or "this file exists, and is not, or no longer, as Buttress wrote it"
            raise BadInput(problem, where=path, key="-o", accepted="another name, or --force to write over it")
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_draft(path: Path, fill: Callable[[Path], Any]) -> Path:
    """Has `fill` write a draft beside `path`, and moves it to `path` in one step."""
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        fill(draft)
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    return path


def _unwritable(path: Path, error: OSError) -> BadInput:
    problem = f"this file cannot be written ({error.strerror or error})"
    return BadInput(problem, where=path, key="-o", accepted="a path that can be written to")


class _Dumper(yaml.SafeDumper):
    """YAML as people write configs: groups in block style, lists of plain values on one line."""


def _list(dumper: yaml.SafeDumper, values: Any) -> yaml.Node:
    plain = all(not isinstance(value, (list, tuple, Mapping)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def _ending(record: TrialRecord) -> str:
    done = record.outcome
    if done is None:
        return f"is {record.state}"
    kind = f" ({done.kind})" if done.kind and done.kind != done.outcome else ""
    return f"{'was ' if done.outcome == 'pruned' else ''}{done.outcome}{kind}"


def _objectives(journal: Journal) -> list[tuple[str, str]]:
    return [(objective.metric, objective.direction) for objective in journal.objectives]


def _alternatives(journal: Journal) -> str:
    winner = best_trial(journal)
    if winner is None:
        return "a completed trial (this sweep has none)"
    text = f"a completed trial, such as {winner.id}, the best one"
    front = [record.id for record in pareto_front(journal) if record.id != winner.id]
    return f"{text} (also {listing(front[:3])})" if front and len(journal.objectives) > 1 else text


def _exact(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value) or "''"


def _source(journal: Journal) -> str:
    return journal.header.sweep if journal.path is None else f"{journal.path.parent.name}/{journal.path.name}"
