"""A sink that keeps the reports of a run outside a sweep, for tests that read a trial's numbers."""

from __future__ import annotations

from buttress.training.trainable import Reported


class CollectingSink:
    """Keeps every report; stops the trial once `until` epochs have been reported.

    `objective`: a metric of the family that only the reports at an epoch's end hold.
    """

    def __init__(self, objective: str, until: int | None = None) -> None:
        self.reports: list[Reported] = []
        self.objective, self.until, self.stop = objective, until, False

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)
        self.stop = self.until is not None and reported.epoch >= self.until

    @property
    def epochs(self) -> list[Reported]:
        return [one for one in self.reports if self.objective in one.metrics]

    @property
    def last(self) -> dict[str, float]:
        return self.reports[-1].metrics
