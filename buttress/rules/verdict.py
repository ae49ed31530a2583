"""Verdicts on a trial and their evidence: frozen records, JSON-able by `to_dict`, with sentences for people."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from buttress.rules.transforms import DIFFERENCES

State = Literal["healthy", "suspect", "collapsed", "diverged"]

#: End of a metric's key -> its name in a sentence, and its unit.
METRIC_LABELS = {
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

#: Transform -> the words before and after the values in a sentence.
TRANSFORM_PHRASES = {
    "value": ("{metric} was", ""),
    "best_ratio": ("{metric} was", " times its best"),
    "best_difference": ("{metric} minus its best was", ""),
    "window_max_over_min": ("the largest {metric} of {window} reports was", " times the smallest"),
    "window_max_minus_min": ("the largest minus the smallest {metric} of {window} reports was", ""),
    "median_ratio": ("{metric} was", " times the median of the {window} reports before"),
    "median_difference": ("{metric} minus the median of the {window} reports before was", ""),
    "slope": ("the slope of {metric} over {window} reports was", " per report"),
}


@dataclass(frozen=True)
class Evidence:
    """One sign of a rule over the reports that a verdict rests on.

    Attributes:
        metric: The metric's key.
        transform: The transform's name in the rules file.
        values: What was compared, after the transform; None where the metric was not finite; empty for `absent` and
            `lost`.
        threshold: The number they were compared with in the last of these reports; None for signs without one.
        comparison: The side of the threshold on which the sign holds.
        reports: (epoch, step) of each report.
        window: The transform's window, in reports.
        against: How the threshold was computed, where it is not a constant.
        clears_at: The threshold that hysteresis puts in its place once the rule is suspect.
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

        Example:
            >>> reports = ((3, 1200), (3, 1300))
            >>> print(Evidence("latent/kl_total", "value", (0.012, 0.009), 0.3, "below", reports).sentence())
            total KL was 0.012, 0.009 nats at epoch 3 (steps 1200, 1300): below 0.3 nats in 2 reports in a row
        """
        metric, unit = metric_label(self.metric)
        if self.transform in ("absent", "lost"):
            return f"{metric} was {self.transform} {_when(self.reports)}"
        if self.transform == "nonfinite":
            return f"{metric} was not finite {_when(self.reports)}"
        before, after = TRANSFORM_PHRASES.get(self.transform, (f"the {self.transform} of {{metric}} was", ""))
        unit = f" {unit}" if unit and self.transform in ("value", "slope", *DIFFERENCES) else ""
        values = _abridged([_number(value) for value in self.values])
        text = f"{before.format(metric=metric, window=self.window)} {values}{unit}{after.format(window=self.window)}"
        text = f"{text} {_when(self.reports)}"
        return text if self.threshold is None else f"{text}: {self._comparison_words(unit)}"

    def _comparison_words(self, unit: str) -> str:
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
    def holds(self) -> bool:
        """Whether some value lay beyond the threshold; always for a sign without a threshold."""
        return self.threshold is None or any(map(self._beyond, self.values))

    def _beyond(self, value: float | None) -> bool:
        if value is None or self.threshold is None:
            return False
        return value < self.threshold if self.comparison == "below" else value > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, unrounded; `from_dict` gives the evidence back."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Evidence:
        """The evidence that `to_dict` wrote, also when it went through JSON."""
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
class RuleWarning:
    """A rule of action `warn` that held for its patience; it stands to the end of the trial.

    Attributes:
        rule: The rule's name.
        kind: What the rule calls this kind of trial.
        epoch: Completed epochs when it was raised.
        step: Completed steps when it was raised.
        evidence: What it was raised on.
        message: A sentence for people.
    """

    rule: str
    kind: str
    epoch: int
    step: int
    evidence: tuple[Evidence, ...]
    message: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**vars(self), "evidence": [evidence.to_dict() for evidence in self.evidence]}


@dataclass(frozen=True)
class Verdict:
    """The state of a trial according to the rules.

    Attributes:
        state: `suspect` while a kill rule holds, but not yet for its patience.
        rule: The rule that stopped the trial, or the first one that it is suspect of.
        kind: What that rule calls this kind of end.
        margin: Decades beyond that rule's threshold (see `RuleEngine`): positive when collapsed or diverged, negative
            when healthy, NaN when no graded metric has been reported.
        evidence: What the verdict rests on; the first piece is the one that the margin was computed from.
        message: A sentence for people.
        warnings: All that were raised so far.
    """

    state: State = "healthy"
    rule: str | None = None
    kind: str | None = None
    margin: float = math.nan
    evidence: tuple[Evidence, ...] = ()
    message: str = ""
    warnings: tuple[RuleWarning, ...] = ()

    @property
    def final(self) -> bool:
        """Whether the trial has collapsed or diverged."""
        return self.state in ("collapsed", "diverged")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; a margin that is not known is None."""
        return {
            "state": self.state,
            "rule": self.rule,
            "kind": self.kind,
            "margin": self.margin if math.isfinite(self.margin) else None,
            "evidence": [evidence.to_dict() for evidence in self.evidence],
            "message": self.message,
            "warnings": [warning.to_dict() for warning in self.warnings],
        }


def metric_label(metric: str) -> tuple[str, str]:
    """A metric's name in a sentence and its unit (empty without one); the key itself where it has no name."""
    labels = (label for end, label in METRIC_LABELS.items() if f"/{metric}".endswith(f"/{end}"))
    return next(labels, (metric, ""))


def evidence_sentence(evidence: Iterable[Evidence]) -> str:
    """The sentences of several pieces of evidence, joined."""
    return "; ".join(each.sentence() for each in evidence)


#: `{metric}` or `{metric:.3f}` in a message.
PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


def format_message(message: str, number: Callable[[str], float | None]) -> str | None:
    """Fills in the placeholders of a rule's message.

    Args:
        message: Text with `{metric}` or `{metric:.3f}` in it.
        number: Gives the value of a placeholder's name, or None.

    Returns:
        The sentence; None when one of its numbers is not known or not finite.
    """
    values = {match[1]: number(match[1].strip()) for match in PLACEHOLDER.finditer(message)}
    if any(value is None or not math.isfinite(value) for value in values.values()):
        return None
    return PLACEHOLDER.sub(lambda match: format(values[match[1]], match[2] or ".4g"), message)


def _when(reports: Sequence[tuple[int, int]]) -> str:
    epochs = list(dict.fromkeys(str(epoch) for epoch, _ in reports))
    steps = [str(step) for _, step in reports]
    return f"at epoch{_plural_s(epochs)} {_abridged(epochs)} (step{_plural_s(steps)} {_abridged(steps)})"


def _plural_s(items: Sequence[str]) -> str:
    return "s" if len(items) > 1 else ""


def _abridged(items: Sequence[str]) -> str:
    shown = items if len(items) <= 5 else [*items[:2], "...", *items[-2:]]
    return ", ".join(shown)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
