"""The public Python API: run, resume and read sweeps from a script or a notebook.

It is used as `import buttress`; nothing heavy is imported until a function needs it. Errors are exceptions: `BadInput`
for whatever was given wrongly, with one sentence that says what came and what is accepted.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from buttress import journal
from buttress.analysis.results import Sweep
from buttress.analysis.trials import Trial, Trials
from buttress.errors import BadInput
from buttress.training.user_code import user_faults

if TYPE_CHECKING:
    import pandas as pd

    from buttress.analysis.calibration import Calibration
    from buttress.analysis.curves import CurveSet
    from buttress.analysis.results import Replay
    from buttress.callbacks.base import Callback
    from buttress.execution.driver import Driver
    from buttress.execution.plan import Plan
    from buttress.rules import RuleSet
    from buttress.spec.spec import SweepSpec

__all__ = [
    "Spec", "Sweep", "Trial", "Trials", "calibrate", "check_data", "load", "plan", "replay", "resume", "run", "train",
]  # fmt: skip

#: What a sweep is given as: a YAML file, the name of a packaged search space, a mapping or a `SweepSpec`.
Spec: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | SweepSpec"
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str] | None
SweepName: TypeAlias = "str | os.PathLike[str] | Sweep"
RulesSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | RuleSet"


@user_faults()
def run(
    spec: Spec,
    *,
    profile: str | None = None,
    set: Overrides = None,
    out: str | os.PathLike[str] = "runs",
    warm_start: SweepName | Sequence[SweepName] = (),
    address: str | None = None,
    callbacks: Sequence[Callback] = (),
    report: bool = False,
    quiet: bool = False,
) -> Sweep:
    """Runs a sweep to its end, with its progress shown in the terminal or the notebook.

    Ctrl-C (in a notebook: interrupting the kernel) ends it in good order: the sweep is returned, `interrupted` is True,
    and `resume` goes on with it.

    Args:
        spec: A YAML file, the name of a packaged search space (`lithology`), a mapping as such a file holds it, or a
            `SweepSpec`. In a mapping `trainable` may be the class itself, if it is defined in a module file.
        profile: A profile of the spec, such as `quick`.
        set: Changes to the spec by key path: `{"budget.trials": 8}`; `config.<path>` fixes a training parameter.
        out: The folder that holds sweeps, or a URL such as `s3://bucket/sweeps`.
        warm_start: Earlier sweeps whose trials the sampler is told first.
        address: A running Ray cluster (`auto` on its head); by default Ray is started here and ends with the sweep.
        callbacks: Called with every journal event while the sweep runs, see `Callback`.
        report: Keep `report.html` in the sweep's folder up to date, about once a minute.
        quiet: Show nothing.

    Returns:
        The sweep, ended or interrupted.

    Raises:
        BadInput: For a spec, a trainer, data or a folder that cannot be used.

    Example:
        >>> sweep = buttress.run("lithology", profile="quick", set={"budget.trials": 8})   # doctest: +SKIP
        >>> sweep.best.metrics["val/ari"]                                                  # doctest: +SKIP
        0.6212
    """
    from buttress.execution import launch
    from buttress.execution.ray_session import check_machine

    resolved = resolve_spec(spec, profile=profile, set=set, warm_start=warm_start)
    check_machine(address)
    return _execute(launch.start(resolved, _text(out), address=address), callbacks, report, quiet)


@user_faults()
def resume(
    sweep: SweepName,
    *,
    trials: int | None = None,
    hours: float | None = None,
    address: str | None = None,
    take_over: bool = False,
    callbacks: Sequence[Callback] = (),
    report: bool = False,
    quiet: bool = False,
) -> Sweep:
    """Goes on with a sweep that was interrupted or killed; finished trials are not run again.

    Args:
        sweep: A `Sweep`, its folder or URL, or its name under `runs/`.
        trials: Raises the budget to this many trials.
        hours: Goes on for at most this many hours.
        address: A running Ray cluster, as in `run`.
        take_over: On remote storage: do not wait for the lease of a driver that is gone.
        callbacks: As in `run`.
        report: As in `run`.
        quiet: Show nothing.

    Returns:
        The sweep, ended or interrupted.

    Raises:
        BadInput: For a sweep that does not exist or that another driver runs.

    Example:
        >>> sweep = buttress.resume("runs/lithology-k3x9qa", trials=48)                    # doctest: +SKIP
    """
    from buttress.execution import launch
    from buttress.execution.ray_session import check_machine

    check_machine(address)
    options: dict[str, Any] = {"address": address, "take_over": take_over}
    return _execute(launch.resume(_sweep_text(sweep), trials=trials, hours=hours, **options), callbacks, report, quiet)


def load(sweep: SweepName) -> Sweep:
    """A sweep that is there, running or ended, wherever it was run.

    Args:
        sweep: Its folder, its URL (`s3://bucket/sweeps/lithology-k3x9qa`), or its name (or how that begins) under
            `runs/`: the newest one counts.

    Raises:
        BadInput: When there is no such sweep.

    Example:
        >>> sweep = buttress.load("lithology")                                             # doctest: +SKIP
        >>> sweep.trials[7].history().tail()                                               # doctest: +SKIP
    """
    text = _sweep_text(sweep)
    found = journal.find(text)
    return Sweep(found.path.parent, where=text if "://" in text else str(found.path.parent), note=found.note)


@user_faults()
def plan(
    spec: Spec,
    *,
    profile: str | None = None,
    set: Overrides = None,
    warm_start: SweepName | Sequence[SweepName] = (),
    address: str | None = None,
    timing: bool = True,
) -> Plan:
    """What a sweep would run and what it needs, before anything starts.

    Args:
        spec: As in `run`; `profile`, `set`, `warm_start` and `address` likewise.
        timing: Trains a typical config for a moment to estimate how long the sweep takes.

    Returns:
        A `Plan`, which a notebook shows as a table; `seconds` is the estimate.

    Raises:
        BadInput: For everything that would keep the sweep from running.

    Example:
        >>> buttress.plan("lithology", profile="quick", timing=False).trials               # doctest: +SKIP
        24
    """
    from buttress.execution.plan import make_plan

    resolved = resolve_spec(spec, profile=profile, set=set, warm_start=warm_start)
    return make_plan(resolved, address=address, timing=timing)


def replay(
    curves: SweepName | pd.DataFrame,
    rules: RulesSource,
    *,
    steps_per_epoch: int | None = None,
) -> Replay:
    """What rules would have done to recorded curves.

    Args:
        curves: A sweep, a CSV, Parquet or CollapseBench file, a folder of such files, or a DataFrame with a column
            `step` or `epoch` (and `trial` where it holds several curves), one row a report.
        rules: A family (`lithology`), a rules file (`.yaml`), a mapping as such a file holds it, or a `RuleSet`.
        steps_per_epoch: Of curves that have epochs only (default 1,000) or steps only (default: no epoch ends).

    Returns:
        A `Replay`: one row a curve in `table()`, and `summary`, which has shares of right and wrong kills where the
        curves' end is known.

    Raises:
        BadInput: For curves that cannot be read, and where no rule looks at anything that they hold.

    Example:
        >>> buttress.replay("curves.csv", "lithology").summary["killed"]                   # doctest: +SKIP
        7
    """
    from buttress.analysis.replay import replay_result
    from buttress.analysis.results import Replay

    found = _curves(curves, steps_per_epoch)
    family = rules if isinstance(rules, str) else ""
    with _about(curves):
        return Replay(replay_result(found, resolve_rules(rules), family=family))


def calibrate(
    curves: SweepName | pd.DataFrame,
    rules: RulesSource,
    *,
    false_kill: float = 0.02,
    delay: float = 0.05,
    steps_per_epoch: int | None = None,
    on_round: Callable[[str], None] = print,
) -> Calibration:
    """Proposes thresholds, grace and patience for rules from curves whose end is known.

    Args:
        curves: As in `replay`, with a ground truth: CollapseBench, or a column `truth`.
        rules: The rules to begin with, as in `replay`.
        false_kill: At most this share of the healthy curves may be killed, 0 to 1.
        delay: A mean delay of this share of the budget is soon enough, 0 to 1.
        steps_per_epoch: As in `replay`.
        on_round: Called with a line about every round of the search.

    Returns:
        `rules` (a `RuleSet`), `score`, `before` and what was `changed`.

    Raises:
        BadInput: Where the curves cannot tell.

    Example:
        >>> proposed = buttress.calibrate("curves.parquet", "lithology")                   # doctest: +SKIP
        >>> proposed.score.false_kill                                                      # doctest: +SKIP
    """
    from buttress.analysis.calibration import calibrate as search

    found = _curves(curves, steps_per_epoch)
    direction = str(found.about.get("direction", "max"))
    with _about(curves):
        return search(
            resolve_rules(rules), found.curves, false_kill=false_kill, delay=delay, direction=direction,
            on_round=on_round,
        )


@user_faults()
def train(
    config: str | os.PathLike[str] | Mapping[str, Any], out: str | os.PathLike[str] | None = None,
    *, set: Overrides = None, wandb: bool | Mapping[str, Any] = False,
) -> dict[str, Any]:
    """Trains one config to its end under its family's rules, as a sweep would.

    Args:
        config: A config file, such as `export` writes, or the config itself (`sweep.best.config`).
        out: The folder for `model.pt`, `history.json` and checkpoints; by default `runs/train-<time>`.
        set: Changes to the config by key path, such as `{"train.epochs": 5}`.
        wandb: Write a W&B run, too: online where there is a key and $WANDB_MODE says nothing else. A mapping may hold
            `project` (default: the trainable's name), `entity`, `run_id`, `name`, `tags` and `mode`.

    Returns:
        `metrics`, `epoch`, `seconds` and `folder` of the best valid epoch.

    Raises:
        Collapsed: When the run collapses; it is stopped as in a sweep.
        BadInput: For a config that cannot be used.

    Example:
        >>> buttress.train("best.yaml", set={"train.epochs": 5})["metrics"]                # doctest: +SKIP
    """
    from buttress.execution.local_training import train_config

    folder = Path(out) if out is not None else Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    if isinstance(config, Mapping):
        config = _written(config, folder)
    options = dict(wandb) if isinstance(wandb, Mapping) else {} if wandb else None
    return train_config(Path(config), folder, _overrides(set), wandb=options)


@user_faults()
def check_data(family: str, path: str | os.PathLike[str], *, set: Overrides = None) -> list[tuple[str, str]]:
    """Reads data as the trainer would, and says what is in it.

    Args:
        family: A family, such as `lithology`, or a trainable of your own that has `check_data`.
        path: Its file or folder.
        set: Changes to the config by key path, such as `{"data.layout": "force2020"}`.

    Returns:
        Rows of (what, text).

    Raises:
        BadInput: For data that cannot be used, with file, column and row.

    Example:
        >>> dict(buttress.check_data("lithology", "cores.csv"))                            # doctest: +SKIP
    """
    from pydantic import ValidationError

    from buttress.errors import from_pydantic
    from buttress.spec.config_paths import layered
    from buttress.spec.overrides import override_config
    from buttress.training import registry

    trainable = registry.load(family)
    own = getattr(trainable, "check_data", None)
    if own is None:
        raise BadInput("this trainable cannot check data", key="FAMILY", value=family)
    content: dict[str, Any] = {}
    sources = override_config(content, _overrides(set), example="data.layout=force2020")
    try:
        config = trainable.Config.model_validate(layered(trainable.Config, content))
    except ValidationError as error:
        raise sources.locate(from_pydantic(error, trainable.Config)) from None
    rows: list[tuple[str, str]] = own(Path(path), config)
    return rows


# ------------------------------------------------------------------------------------------------- what a spec may be


def search_spaces() -> dict[str, Path]:
    """The packaged search spaces, by name."""
    folder = Path(str(files("buttress") / "search_spaces"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_spec(spec: str | os.PathLike[str]) -> Path:
    """The file of a spec: a packaged search space by its name; anything with a suffix or a slash is a path.

    Raises:
        BadInput: For a name that no packaged search space has.
    """
    text = os.fspath(spec)
    if not isinstance(spec, str) or Path(text).suffix or os.sep in text:
        return Path(text)
    packaged = search_spaces()
    if text in packaged:
        return packaged[text]
    close = difflib.get_close_matches(text, packaged, 1)
    problem = "no such search space" + (f"; did you mean {close[0]}?" if close else "")
    beside = next((str(path) for path in (Path(f"{text}.yaml"), Path(f"./{text}")) if path.is_file()), "a YAML file")
    raise BadInput(problem, key="SPEC", value=text, accepted=f"{', '.join(packaged)}, or {beside}")


def resolve_spec(
    spec: Spec,
    *,
    profile: str | None = None,
    set: Overrides = None,
    warm_start: SweepName | Sequence[SweepName] = (),
) -> SweepSpec:
    """The `SweepSpec` of whatever `run` accepts, with profile, changes and warm starts applied."""
    from buttress.spec.spec import SweepSpec

    if isinstance(spec, SweepSpec):
        found = spec
        if profile is not None:
            raise BadInput("a SweepSpec has its profile already", key="profile", value=profile, accepted="a YAML file")
        if set:
            found = SweepSpec.from_dict(
                spec.to_dict(), overrides=_overrides(set), where=spec.where, module_folders=spec.module_folders
            )
    elif isinstance(spec, Mapping):
        tree = dict(spec)
        if "profile" in tree:
            raise BadInput("a spec cannot choose its profile", key="profile", accepted="profile=NAME beside it")
        if isinstance(tree.get("trainable"), type):
            tree["trainable"] = _trainable_name(tree["trainable"])
        if isinstance(tree.get("trainable"), str):
            _refuse_main(tree["trainable"])
            tree.setdefault("name", tree["trainable"].partition(":")[0].rpartition(".")[2])
        found = SweepSpec.from_dict(tree, profile, _overrides(set))
    else:
        found = SweepSpec.load(find_spec(spec), profile=profile, overrides=_overrides(set))
    _refuse_main(found.trainable)
    earlier = (warm_start,) if isinstance(warm_start, str | os.PathLike | Sweep) else warm_start
    if earlier:
        told = (*found.warm_start, *(_sweep_text(sweep) for sweep in earlier))
        found = found.model_copy(update={"warm_start": told})
    return found


def _trainable_name(cls: type) -> str:
    """The name by which workers import a class."""
    from buttress.training.registry import FAMILIES

    name = f"{cls.__module__}:{cls.__qualname__}"
    _refuse_main(name)
    if "<locals>" in name:
        problem = f"the class {cls.__name__} is defined inside a function, and workers cannot import it from there"
        raise BadInput(problem, key="trainable", accepted="a class at the top level of a module file")
    return next((family for family, target in FAMILIES.items() if target == name), name)


def _refuse_main(trainable: str) -> None:
    module, _, name = trainable.partition(":")
    if module == "__main__":
        raise BadInput(
            f"the class {name} is defined in a notebook or in the script itself: workers cannot import it from there",
            key="trainable",
            accepted=f"a class in a module file: put it into my_trainer.py beside it, and name it my_trainer:{name}",
        )


def resolve_rules(rules: RulesSource) -> RuleSet:
    """The rules that a family, a file, a mapping or a `RuleSet` stands for."""
    from buttress.execution.setup import rules_of
    from buttress.rules import RuleSet

    if isinstance(rules, RuleSet):
        return rules
    if isinstance(rules, Mapping):
        return RuleSet.from_dict(dict(rules))
    if isinstance(rules, str) and Path(rules).suffix not in (".yaml", ".yml"):
        return rules_of(rules)
    return RuleSet.load(rules)


def _overrides(given: Overrides) -> list[str]:
    """Changes as `key.path=value` texts with the value in YAML, as the command line has them."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        try:
            return [f"{key}={json.dumps(value, allow_nan=False)}" for key, value in given.items()]
        except (TypeError, ValueError) as error:
            raise BadInput(f"holds what YAML cannot say ({error})", key="set", value=dict(given)) from None
    return [given] if isinstance(given, str) else list(given)


def _text(place: str | os.PathLike[str]) -> str:
    return os.fspath(place)


def _sweep_text(sweep: SweepName) -> str:
    return sweep.where if isinstance(sweep, Sweep) else os.fspath(sweep)


def _curves(curves: SweepName | pd.DataFrame, steps_per_epoch: int | None) -> CurveSet:
    from buttress.analysis.curves import read_curves

    if isinstance(curves, str | os.PathLike | Sweep):
        return read_curves(_sweep_text(curves), steps_per_epoch=steps_per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.parquet"
        curves.to_parquet(path, index=False)
        return read_curves(path, steps_per_epoch=steps_per_epoch)


@contextmanager
def _about(source: Any) -> Iterator[None]:
    """An error that names no file is said to be about `source`."""
    try:
        yield
    except BadInput as error:
        raise (error.at(_sweep_text(source)) if isinstance(source, str | os.PathLike | Sweep) else error) from None


def _written(config: Mapping[str, Any], folder: Path) -> Path:
    """A config as a file in the folder that it is trained in."""
    import yaml

    path = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where=path, key="out") from None
    return path


# ------------------------------------------------------------------------------------------------- running a driver


def _execute(driver: Driver, callbacks: Sequence[Callback], report: bool, quiet: bool) -> Sweep:
    """Runs a driver with its progress display, its W&B runs and the given callbacks, which are closed in any case."""
    from buttress.callbacks.base import messages_log
    from buttress.callbacks.loggers import LOGGERS
    from buttress.callbacks.progress import Progress, ProgressHeader
    from buttress.callbacks.report import ReportPage
    from buttress.callbacks.wandb import WandbRuns
    from buttress.console import PlainConsole

    spec = driver.spec
    first = spec.objectives[0]
    wandb = WandbRuns(
        driver.sweep,
        driver.folder,
        project=spec.wandb.project or spec.name,
        entity=spec.wandb.entity,
        group=spec.wandb.group,
        mode=spec.wandb.mode,
        tags=spec.wandb.tags,
        metrics=driver.trainable.metrics,
        original_names=getattr(driver.trainable, "original_names", {}),
        on_message=driver.callbacks.on_message,
        objective=(first.metric, str(first.direction)),
        earlier=driver.earlier,
    )
    console = PlainConsole(file=sys.stderr, quiet=quiet)
    progress = Progress(ProgressHeader(driver.sweep, first.metric, str(first.direction), spec.budget.trials), console)
    for line in driver.earlier:
        progress.on_event(line)
    page = ReportPage(driver.folder) if report else None
    loggers = [LOGGERS[name](driver.folder, driver.sweep) for name in spec.callbacks]
    driver.callbacks.add(wandb, progress, *([page] if page else []), *loggers, *callbacks)
    console.print(f"sweep {driver.sweep}: journal, checkpoints and W&B files go to {driver.where}")
    level = messages_log.level
    try:
        if not quiet:
            messages_log.setLevel(logging.ERROR)  # the display shows them
        with progress:
            finish = driver.run()
    finally:
        if page is not None:
            page.close()
        wandb.close()
        messages_log.setLevel(level)
        for logger in loggers:
            logger.close()
    sweep = Sweep(finish.folder, where=finish.where)
    if closing := wandb.closing_line():
        console.print(closing, soft_wrap=True, markup=False)
    if page is not None:
        console.print(f"report: {sweep.report()}")
    return sweep
