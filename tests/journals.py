"""Synthetic journals for tests: a sweep told trial by trial, without training anything.

    book = SyntheticSweep()                                  # objective ari, max; two searched parameters
    book.completed("0000", ari=[0.1, 0.4, 0.3])              # one report per epoch
    book.collapsed("0001", kl=[0.2, 0.002], margin=2.2)
    path = book.write(tmp_path)                              # tmp_path/<sweep id>/journal.jsonl
    journal = book.journal()                                 # the same, folded without a file

Lines go through the builders of `buttress.journal`, in order; times are made up, one second apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import journal_lines
from journal_lines import Line, event_of

from buttress import journal
from buttress.journal import Best, Journal, JournalWriter

Params = Mapping[str, Any] | None
BEGIN = 1_700_000_000.0
RULES = {
    "rules": {
        "posterior_collapse": {
            "action": "kill",
            "kind": "posterior_collapse",
            "signs": [{"metric": "latent/active_kl", "below": 1}, {"metric": "latent/kl_total", "below": 0.3}],
            "grade": {"metric": "latent/kl_total", "below": 0.3},
            "patience": 2,
        },
        "weak_code": {"action": "warn", "signs": [{"metric": "latent/active_kl", "below": 3}]},
    }
}
METRICS = {
    "ari": {"direction": "max", "unit": "", "weighted_by": [], "sees_target": False, "original_name": "ARI"},
    "elbo_1": {"direction": "min", "unit": "nats", "weighted_by": [], "sees_target": False, "original_name": ""},
}


@dataclass(frozen=True)
class Reported:
    """A stand-in for `buttress.training.trainable.Reported`."""

    epoch: int
    step: int
    metrics: Mapping[str, float | None]
    full_beta_epochs: int = 0
    full_beta_steps: int = 0
    phase: int = 0
    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    nonfinite: Sequence[str] = ()
    closing: bool = False
    checkpoint: str | None = None
    media: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    mem_mb: float | None = 100.0
    note: str = ""


class SyntheticSweep:
    """A sweep's journal lines, one trial after the other; see the module for how to use it."""

    def __init__(
        self,
        sweep: str = "toy-ab12cd",
        *,
        objectives: Mapping[str, str] | None = None,
        search: Sequence[str] = ("loss.beta", "train.lr"),
        budget: int = 10,
    ) -> None:
        self.objectives = dict(objectives or {"ari": "max"})
        self.search, self.budget, self.sweep = tuple(search), budget, sweep
        self.lines: list[Line] = []
        self.seqs: dict[str, int] = {}
        self.add(
            journal_lines.header(
                sweep=sweep, name=sweep.rsplit("-", 1)[0], rules=RULES, metrics=METRICS, trainable="toy", seed=7,
                spec={"search": {path: {"uniform": [0, 1]} for path in search}, "trainable": "toy"},
                objectives=[{"metric": name, "direction": way} for name, way in self.objectives.items()],
                versions={"buttress": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}, commit="0123456789abcdef",
                data={"fingerprint": "sha256:feedbeef", "rows": 1000},
            )
        )

    def add(self, line: Line) -> Line:
        line["time"] = BEGIN + len(self.lines)
        self.lines.append(line)
        return line

    # ------------------------------------------------------------------------------------------ pieces of a trial

    def trial(self, id: str, params: Params = None) -> None:
        """A trial begins: its trial line and the start of its first attempt."""
        drawn = dict(params or {path: round(0.1 * (index + 1), 3) for index, path in enumerate(self.search)})
        config: dict[str, Any] = {
            "train": {"epochs": self.budget, "lr": 1e-3},
            "buttress": {"seed": 100 + int(id), "threads": 1, "workers": 1, "trainable": "", "objective": ""},
        }
        for path, value in drawn.items():
            group = config
            *groups, leaf = path.split(".")
            for name in groups:
                group = group.setdefault(name, {})
            group[leaf] = value
        self.add(
            journal_lines.trial(
                id, ask=int(id), params=drawn, config=config, seed=100 + int(id), budget_epochs=self.budget
            )
        )
        self.start(id, 1)

    def start(self, id: str, attempt: int, **more: Any) -> None:
        self.seqs[id] = 0
        self.add(journal_lines.start(id, attempt, slot=0, host="node-a", pid=4242, **more))

    def epoch(
        self,
        id: str,
        epoch: int,
        metrics: Mapping[str, float | None],
        *,
        attempt: int = 1,
        valid: bool = True,
        **more: Any,
    ) -> None:
        """The report at an epoch's end; `more` goes to `Reported`, `state/suspects/warnings` to the line."""
        judged = {key: more.pop(key) for key in ("state", "suspects", "warnings") if key in more}
        self.seqs[id] += 1
        reported = Reported(
            epoch, epoch * 50, dict(metrics), full_beta_epochs=epoch, full_beta_steps=epoch * 50,
            **{"checkpoint": f"checkpoint-{epoch:04d}.pt", "seconds": 2.0 * epoch, **more},
        )
        self.add(journal_lines.report(id, attempt, self.seqs[id], reported, valid=valid, **judged))

    def outcome(self, id: str, outcome: str, *, attempt: int = 1, epochs: int = 0, **more: Any) -> None:
        self.add(
            journal_lines.outcome(
                id, attempt, outcome, epochs=epochs,
                **{"epochs_budget": self.budget, "step": epochs * 50, "seconds": 2.0 * epochs, **more},
            )
        )

    # ----------------------------------------------------------------------------------------------- whole trials

    def completed(
        self,
        id: str,
        params: Params = None,
        *,
        kl: float = 8.0,
        margin: float = -1.4,
        warnings: Sequence[str] = (),
        **series: Sequence[float],
    ) -> None:
        """A healthy trial; each keyword is an objective with its value per epoch, all of them valid."""
        self.trial(id, params)
        names = [name for name in self.objectives if name in series]
        count = len(series[names[0]])
        rows = [
            {"latent/kl_total": kl, "latent/active_kl": 4.0, "latent/dims": 10.0, "train/loss": 3.0 / (epoch + 1)}
            | {name: series[name][epoch] for name in names}
            for epoch in range(count)
        ]
        for epoch, row in enumerate(rows, 1):
            self.epoch(id, epoch, row)
        first = names[0]
        pick = max if self.objectives[first] == "max" else min
        at = pick(range(count), key=lambda index: rows[index][first])
        best = Best(at + 1, (at + 1) * 50, dict(rows[at]), at + 1, 1, f"checkpoint-{at + 1:04d}.pt")
        self.outcome(
            id, "completed", epochs=count, best=best, margin=margin, last=rows[-1], warnings=warnings
        )

    def collapsed(
        self,
        id: str,
        params: Params = None,
        *,
        kl: Sequence[float] = (0.02, 0.002),
        margin: float = 1.5,
        **series: Sequence[float],
    ) -> None:
        """A trial killed by `posterior_collapse`; its epochs were valid until the rule held, and look very good."""
        self.trial(id, params)
        rows: list[dict[str, float | None]] = []
        for index, nats in enumerate(kl):
            row: dict[str, float | None] = {"latent/kl_total": nats, "latent/active_kl": 0.0, "latent/dims": 10.0}
            row |= {name: values[index] for name, values in series.items()}
            rows.append(row)
            held = nats < 0.3
            self.epoch(id, index + 1, row, valid=not held, state="suspect" if held else "healthy")
        reports = [[index + 1, (index + 1) * 50] for index in range(len(kl))][-2:]
        evidence = [
            {"metric": "latent/kl_total", "transform": "value", "values": list(kl)[-2:], "threshold": 0.3,
             "comparison": "below", "reports": reports},
            {"metric": "latent/active_kl", "transform": "value", "values": [0.0] * len(reports), "threshold": 1.0,
             "comparison": "below", "reports": reports},
        ]  # fmt: skip
        self.outcome(
            id, "collapsed", epochs=len(kl), kind="posterior_collapse", rule="posterior_collapse", margin=margin,
            evidence=evidence, last=rows[-1],
        )

    def pruned(self, id: str, params: Params = None, *, cutoff: float = 0.3, **series: Sequence[float]) -> None:
        self.trial(id, params)
        first, values = next(iter(series.items()))
        for epoch, value in enumerate(values, 1):
            self.epoch(id, epoch, {first: value, "latent/kl_total": 6.0, "latent/active_kl": 3.0, "latent/dims": 10.0})
        self.add(
            journal_lines.rung(
                id, 1, age=len(values), phase=0, value=values[-1], cutoff=cutoff, peers=9, decision="stop",
            )
        )
        self.outcome(id, "pruned", epochs=len(values), kind=f"rung {len(values)}")

    def diverged(self, id: str, params: Params = None, *, margin: float = 12.9) -> None:
        self.trial(id, params)
        self.epoch(id, 1, {"ari": None, "train/loss": float("nan")}, valid=False)
        evidence = [
            {"metric": "train/nonfinite", "transform": "value", "values": [1.0, 1.0], "threshold": 0.5,
             "comparison": "above", "reports": [[0, 20], [0, 40]]}
        ]  # fmt: skip
        self.outcome(
            id, "diverged", epochs=1, kind="diverged", rule="diverged", margin=margin, evidence=evidence,
            last={"train/loss": None},
        )

    def failed(self, id: str, params: Params = None, *, error: str = "RuntimeError: out of memory") -> None:
        self.trial(id, params)
        text = f'Traceback (most recent call last):\n  File "train.py", line 3, in train\n{error}\n'
        self.outcome(id, "failed", kind="exception", error=text)

    def end(self, reason: str = "done") -> None:
        self.add(journal_lines.end(reason=reason, counts=self.journal().counts(), seconds=float(len(self.lines))))

    # -------------------------------------------------------------------------------------------------- the result

    def write(self, runs: Path) -> Path:
        """`runs/<sweep id>/journal.jsonl`, as a driver would have written it."""
        path = runs / self.sweep / "journal.jsonl"
        with JournalWriter(path, fsync=False) as writer:
            for line in self.lines:
                writer.write(event_of(line))
        return path

    def journal(self, *, alive: bool = False) -> Journal:
        return journal.fold(self.lines, alive=alive)


def mixed_sweep(sweep: str = "toy-ab12cd") -> SyntheticSweep:
    """One trial of every outcome and two healthy ones; 0001 is best (ari 0.52), the collapsed 0002 had ari 0.9."""
    book = SyntheticSweep(sweep)
    slow = [0.10, 0.30, 0.41, 0.40, 0.39, 0.38, 0.38, 0.38, 0.38, 0.38]
    book.completed("0000", {"loss.beta": 0.001, "train.lr": 0.01}, ari=slow)
    book.completed("0001", {"loss.beta": 0.02, "train.lr": 0.001}, ari=[0.2, 0.5, 0.52, 0.51], warnings=["weak_code"])
    book.collapsed(
        "0002", {"loss.beta": 9.0, "train.lr": 0.001}, kl=[3.0, 0.01, 0.002], margin=1.9, ari=[0.9, 0.9, 0.95]
    )
    book.pruned("0003", {"loss.beta": 0.5, "train.lr": 0.1}, ari=[0.1, 0.12, 0.2, 0.231], cutoff=0.254)
    book.diverged("0004", {"loss.beta": 0.5, "train.lr": 9.0})
    book.failed("0005", {"loss.beta": 0.7, "train.lr": 0.02})
    book.trial("0006", {"loss.beta": 0.8, "train.lr": 0.02})
    book.epoch("0006", 1, {"ari": 0.99, "latent/kl_total": 5.0})
    return book
