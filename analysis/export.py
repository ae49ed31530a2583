"""The result of a sweep, ready to be trained: the config of a trial as YAML, and its weights.

`export` gives the text of `best.yaml`: the trial's whole config as the trainable's `Config` takes it, numbers exact,
preceded by comments that say where it comes from. Only a completed trial is exported unless it is forced.
`export_files` writes it, and the weights of the trial's best checkpoint beside it.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from buttress.analysis.explain import reason
from buttress.analysis.selection import best, best_of, pareto
from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord
from buttress.storage import origin, unreachable
from buttress.wording import listing, number

#: First line of every exported file; a file that begins with it may be written over.
MARK = "# Exported by Buttress"


class NothingHealthy(Exception):
    """The sweep holds no healthy trial, so there is no best one (exit code 1: good input, but nothing came of it)."""

    exit_code = 1

    def __init__(self, journal: Journal) -> None:
        counts = [f"{count} {state}" for state, count in journal.counts().items()]
        super().__init__(
            f"{journal.header.sweep} has no healthy trial ({listing(counts) or 'no trial at all'}); "
            "`buttress table` says why, and --trial ID --force exports one nevertheless"
        )


def export(journal: Journal, trial: str | None = None, *, force: bool = False) -> str:
    """The text of `best.yaml` for the best trial, or for the one named.

    Raises `NothingHealthy` where no trial can be best, and BadInput for a named trial that is unknown or not completed
    (`force` exports that one; its comments say what became of it).
    """
    record = chosen(journal, trial, force=force)
    text = yaml.dump(
        config_of(journal, record), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )
    comments = [MARK, *(f"# {line}" for line in provenance(journal, record))]
    return "\n".join(comments) + "\n\n" + text


def export_files(
    journal: Journal, output: Path, trial: str | None = None, *, weights: bool = False, force: bool = False
) -> list[Path]:
    """Writes a trial's config to `output`, and with `weights` its model as a plain state dict in a `.pt` beside it.

    Returns the files that were written; raises as `export`, `write` and `checkpoint_of` do.
    """
    written = [write(export(journal, trial, force=force), output, force=force)]
    if weights:
        from buttress.training import registry
        from buttress.training.checkpoints import save_weights, weights_of

        source = checkpoint_of(journal, chosen(journal, trial, force=force))
        trainable = registry.load(journal.header.trainable)
        load = partial(weights_of, trainable)
        written.append(export_weights(source, output.with_suffix(".pt"), load=load, save=save_weights, force=force))
    return written


def config_of(journal: Journal, record: TrialRecord) -> dict[str, Any]:
    """A trial's whole config as it is trained again: with its trainable, its objective and what validation found."""
    config = {**record.config}
    group = config.get("buttress")
    mine = dict(group) if isinstance(group, Mapping) else {}
    mine["trainable"] = mine.get("trainable") or journal.header.trainable
    mine["objective"] = mine.get("objective") or journal.objectives[0].metric
    config["buttress"] = mine
    for path, value in found_by_validation(journal, record).items():
        _put_at(config, path, value)
    return config


def chosen(journal: Journal, trial: str | None = None, *, force: bool = False) -> TrialRecord:
    """The trial to export; raises as `export` does."""
    if trial is None:
        record = best(journal)
        if record is None:
            raise NothingHealthy(journal)
        return record
    record = journal.trial(trial)
    if record.state != "completed" and not force:
        raise BadInput(
            f"trial {record.id} {_became(record)}, so its config is no result: {reason(journal, record)}",
            key="--trial", value=trial, accepted=f"{_alternatives(journal)}, or --force",
        )
    return record


def found_by_validation(journal: Journal, record: TrialRecord) -> dict[str, float]:
    """Config paths and values of the metrics that are `exported_as` one, at the trial's best valid epoch."""
    best = best_of(record, journal.objectives)
    values = best.metrics if best is not None else {}
    paths = {metric: about.get("exported_as") for metric, about in journal.header.metrics.items()}
    return {path: value for metric, path in paths.items() if path and (value := values.get(metric)) is not None}


def _put_at(config: dict[str, Any], path: str, value: float) -> None:
    """Sets a value at a dotted path; the groups on the way are copied, so that the journal's config stays as it is."""
    *groups, last = path.split(".")
    for group in groups:
        config[group] = {**(config.get(group) or {})}
        config = config[group]
    config[last] = value


def provenance(journal: Journal, record: TrialRecord) -> list[str]:
    """Where a config comes from, as lines of text."""
    head, found, done = journal.header, best_of(record, journal.objectives), record.outcome
    winner = best(journal)
    rank = "the best trial of" if winner is not None and winner.id == record.id else "trial of"
    lines = [f"{rank} sweep {head.sweep}: trial {record.id}, which {_became(record)}"]
    if record.state != "completed":
        lines.append(f"NOT A RESULT: {reason(journal, record)}")
    if found is not None:
        values = [f"{name} = {_exact(found.metrics.get(name))} ({way})" for name, way in _objectives(journal)]
        lines.append(f"best valid epoch {found.epoch} (step {number(found.step)}): {', '.join(values)}")
    if done is not None and done.margin is not None:
        lines.append(f"margin to collapse {done.margin:+.3f} decades (negative: healthy)")
    if record.warnings:
        lines.append(f"warnings: {', '.join(record.warnings)}")
    found_values = found_by_validation(journal, record)
    lines += [f"set by validation: {path}={_exact(value)}" for path, value in found_values.items()]
    lines.append(f"searched: {', '.join(f'{path}={_exact(value)}' for path, value in record.params.items())}")
    lines.append(f"exported {datetime.now().astimezone().isoformat(timespec='seconds')} from {_where(journal)}")
    data = ", ".join(f"{key} {value}" for key, value in head.data.items() if not isinstance(value, (Mapping, list)))
    lines += [f"git commit {head.commit}"] if head.commit else []
    lines += [f"data: {data}"] if data else []
    versions = {"python": platform.python_version(), **head.versions}
    lines.append(f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    lines.append("train it: buttress train THIS_FILE")
    return [part for line in lines for part in textwrap.wrap(line, 116, subsequent_indent="    ")]


def write(text: str, target: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes an export whole or not at all. An earlier export is replaced; any other file only when forced."""
    path = Path(target)
    _replaceable(path, force, lambda: path.read_bytes().startswith(MARK.encode()))
    return _put(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def find_checkpoint(journal: Journal, record: TrialRecord) -> Path | None:
    """The file of the trial's best checkpoint, fetched from remote storage where it lies there; None without one."""
    found = best_of(record, journal.objectives)
    if found is None or not found.checkpoint:
        return None
    path = journal.trial_folder(record.id) / found.checkpoint
    if not path.is_file() and (store := origin(journal.folder)) is not None:
        try:
            return store.download(f"trials/{record.id}/{found.checkpoint}", path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreachable(store, error) from None
    return path if path.is_file() else None


def checkpoint_of(journal: Journal, record: TrialRecord) -> Path:
    """The file of the trial's best checkpoint; raises BadInput when there is none (any more)."""
    path = find_checkpoint(journal, record)
    if path is not None:
        return path
    found = best_of(record, journal.objectives)
    problem = f"trial {record.id} left no checkpoint of a valid epoch"
    if found is not None and found.checkpoint:
        gone = journal.trial_folder(record.id) / found.checkpoint
        problem = f"the checkpoint of trial {record.id} is gone ({gone})"
    raise BadInput(
        problem, where=journal.header.sweep, key="--weights",
        accepted="one of the 3 best completed trials, whose checkpoints are kept; or export the config and train it",
    )


def export_weights(
    source: Path,
    target: str | os.PathLike[str],
    *,
    load: Callable[[Path], Any] | None = None,
    save: Callable[[Any, Path], Any] | None = None,
    force: bool = False,
) -> Path:
    """Copies a checkpoint file to `target`, whole or not at all.

    With `load` and `save`, what `load(source)` returns is written by `save(it, file)`: the caller picks the model's
    state dict out of the checkpoint there. Raises BadInput when `target` exists (unless forced) or cannot be written.
    """
    path = Path(target)
    _replaceable(path, force, lambda: False)
    if load is None or save is None:
        return _put(path, lambda draft: shutil.copyfile(source, draft))
    content = load(source)
    return _put(path, lambda draft: save(content, draft))


# ------------------------------------------------------------------------------------------------------------- writing


def _replaceable(path: Path, force: bool, ours: Callable[[], bool]) -> None:
    if path.is_dir():
        raise BadInput("this is a folder", where=path, key="-o", accepted="the name of a file")
    try:
        if path.exists() and not force and not ours():
            problem = "this file exists and is no earlier export"
            raise BadInput(problem, where=path, key="-o", accepted="another name, or --force to write over it")
    except OSError as error:
        raise _unwritable(path, error) from error


def _put(path: Path, fill: Callable[[Path], Any]) -> Path:
    """`fill` writes a draft beside `path`, which then takes its place in one step."""
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


# ------------------------------------------------------------------------------------------------------------- phrases


def _became(record: TrialRecord) -> str:
    done = record.outcome
    if done is None:
        return f"is {record.state}"
    kind = f" ({done.kind})" if done.kind and done.kind != done.outcome else ""
    return f"{'was ' if done.outcome == 'pruned' else ''}{done.outcome}{kind}"


def _objectives(journal: Journal) -> list[tuple[str, str]]:
    return [(objective.metric, objective.direction) for objective in journal.objectives]


def _alternatives(journal: Journal) -> str:
    winner = best(journal)
    if winner is None:
        return "a completed trial (this sweep has none)"
    front = [record.id for record in pareto(journal) if record.id != winner.id] if len(journal.objectives) > 1 else []
    return f"a completed trial, such as {winner.id}, the best one" + (f" (also {listing(front[:3])})" if front else "")


def _exact(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)


def _where(journal: Journal) -> str:
    return journal.header.sweep if journal.path is None else f"{journal.path.parent.name}/{journal.path.name}"
