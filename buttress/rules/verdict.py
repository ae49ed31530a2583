"""What the rules say of a trial, and why: plain frozen records with the sentences that people read.

A `Verdict` is where a trial stands after a report; its `Evidence` holds, per sign, the values that counted, the reports
they came from and the threshold they were held against. All of it is JSON-able by `to_dict`, numbers unrounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["healthy", "suspect", "collapsed", "diverged"]

#: What a metric is called in a sentence, by the end of its key, and its unit.
WORDS = {
    "kl_total": ("total KL", "nats"),
    "kl_per_dim": ("KL per dimension", "nats"),
    "kl_sample_median": ("the median KL of a sample", "nats"),
    "kl_sample_below_1e3": ("the share of samples without a code", ""),
    "active_kl": ("the number of dimensions with KL", ""),
    "active_var_1e2": ("the number of active units", ""),
    "active_var_1e3": ("the number of active units", ""),
    "ablation/delta": ("what the latent code adds", ""),
    "ablation/relative": ("the share of the loss that the latent code removes", ""),
    "train/nonfinite": ("the share of steps that were not finite", ""),
    "latent/nonfinite": ("the share of codes that were not finite", ""),
}

#: How a transformed metric is told: what stands before and after its values.
PHRASES = {
    "value": ("{metric} was", ""),
    "best_ratio": ("{metric} was", " times its best"),
    "window_max_over_min": ("the largest {metric} of {window} reports was", " times the smallest"),
    "median_ratio": ("{metric} was", " times the median of the {window} reports before"),
    "slope": ("the slope of {metric} over {window} reports was", " per report"),
}


@dataclass(frozen=True)
class Evidence:
    """One sign of a rule over the reports that counted.

    `values` are what was compared (after the transform; None where the metric was not finite; empty for `absent`),
    `reports` the (epoch, step) pairs they came from. `threshold` is the number they were held against at the last of
    these reports, `against` how it came about where it is no constant, `clears_at` where the sign would have cleared
    once the rule was suspect (hysteresis).
    """

    metric: str
    transform: str
    values: tuple[float | None, ...]
    threshold: float | None
    comparison: Literal["below", "above"] | None
    reports: tuple[tuple[int, int], ...]
    window: int | None = None
    against: str | None = None
    clears_at: float | None = None

    def sentence(self) -> str:
        """The observation in words.

        >>> print(Evidence("latent/kl_total", "value", (0.012, 0.009), 0.3, "below", ((3, 1200), (3, 1300))).sentence())
        total KL was 0.012, 0.009 nats at epoch 3 (steps 1200, 1300): below 0.3 nats in 2 reports in a row
        """
        metric, unit = words(self.metric)
        if self.transform in ("absent", "lost"):
            return f"{metric} was {self.transform} {_when(self.reports)}"
        if self.transform == "nonfinite":
            return f"{metric} was not finite {_when(self.reports)}"
        before, after = PHRASES[self.transform]
        unit = f" {unit}" if unit and self.transform in ("value", "slope") else ""
        values = _few([_number(value) for value in self.values])
        text = f"{before.format(metric=metric, window=self.window)} {values}{unit}{after.format(window=self.window)}"
        return f"{text} {_when(self.reports)}: {self._judged(unit)}"

    def _judged(self, unit: str) -> str:
        assert self.threshold is not None and self.comparison is not None
        limit = f"{self.comparison} {_number(self.threshold)}{unit}"
        if self.against:
            limit += f" ({self.against})"
        beyond, count = sum(map(self._beyond, self.values)), len(self.values)
        if beyond == 0:
            return f"not {limit}"
        if count == 1:
            return limit
        if beyond == count:
            return f"{limit} in {count} reports in a row"
        clears = f", and never back past {_number(self.clears_at)}{unit}" if self.clears_at is not None else ""
        return f"{limit} in {beyond} of {count} reports{clears}"

    @property
    def held(self) -> bool:
        """Whether some value lay beyond the threshold; a sign without a threshold is here because it held."""
        return self.threshold is None or any(map(self._beyond, self.values))

    def _beyond(self, value: float | None) -> bool:
        if value is None or self.threshold is None:
            return False
        return value < self.threshold if self.comparison == "below" else value > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives it back."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Evidence:
        """The evidence that `to_dict` wrote, also after a journey through JSON."""
        return cls(
            metric=entry["metric"],
            transform=entry.get("transform", "value"),
            values=tuple(entry.get("values", ())),
            threshold=entry.get("threshold"),
            comparison=entry.get("comparison"),
            reports=tuple((int(epoch), int(step)) for epoch, step in entry.get("reports", ())),
            window=entry.get("window"),
            against=entry.get("against"),
            clears_at=entry.get("clears_at"),
        )


@dataclass(frozen=True)
class Warned:
    """A warning rule that held for its patience: when it was raised, and on what. It stands to the end of the trial."""

    rule: str
    kind: str
    epoch: int
    step: int
    evidence: tuple[Evidence, ...]
    message: str

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "evidence": [evidence.to_dict() for evidence in self.evidence]}


@dataclass(frozen=True)
class Verdict:
    """Where a trial stands.

    `rule` and `kind` name the rule that condemned it, or the first one it is suspect of. `margin` is in decades beyond
    that rule's threshold (see `rules/engine.py`): positive when condemned, negative when healthy, NaN when no graded
    metric has been reported. The first piece of evidence is the one that the margin was computed from. `warnings` are
    all that were raised so far.
    """

    state: State = "healthy"
    rule: str | None = None
    kind: str | None = None
    margin: float = math.nan
    evidence: tuple[Evidence, ...] = ()
    message: str = ""
    warnings: tuple[Warned, ...] = ()

    @property
    def final(self) -> bool:
        return self.state in ("collapsed", "diverged")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: a margin that is not known is None."""
        return {
            "state": self.state,
            "rule": self.rule,
            "kind": self.kind,
            "margin": self.margin if math.isfinite(self.margin) else None,
            "evidence": [evidence.to_dict() for evidence in self.evidence],
            "message": self.message,
            "warnings": [warning.to_dict() for warning in self.warnings],
        }


def words(metric: str) -> tuple[str, str]:
    """What a metric is called in a sentence, and its unit; the key itself where there is no word for it."""
    return next((word for end, word in WORDS.items() if metric == end or metric.endswith(f"/{end}")), (metric, ""))


def told(evidence: Iterable[Evidence]) -> str:
    """The sentences of several pieces of evidence as one."""
    return "; ".join(each.sentence() for each in evidence)


#: `{metric}` or `{metric:.3f}` in a message.
PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


def filled(message: str, number: Callable[[str], float | None]) -> str | None:
    """A message with its numbers in it; None when one of them is not known or not finite."""
    values = {match[1]: number(match[1].strip()) for match in PLACEHOLDER.finditer(message)}
    if any(value is None or not math.isfinite(value) for value in values.values()):
        return None
    return PLACEHOLDER.sub(lambda match: format(values[match[1]], match[2] or ".4g"), message)


def _when(reports: Sequence[tuple[int, int]]) -> str:
    epochs = list(dict.fromkeys(str(epoch) for epoch, _ in reports))
    steps = [str(step) for _, step in reports]
    return f"at epoch{_s(epochs)} {_few(epochs)} (step{_s(steps)} {_few(steps)})"


def _s(items: Sequence[str]) -> str:
    return "s" if len(items) > 1 else ""


def _few(items: Sequence[str]) -> str:
    shown = items if len(items) <= 5 else [*items[:2], "...", *items[-2:]]
    return ", ".join(shown)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
