"""The live view and the plain lines of a running sweep, read as a person would read them."""

from __future__ import annotations

import io
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from journal_lines import event_of
from rich.console import Console

from buttress.analysis.explanation import evidence_sentence
from buttress.callbacks.progress import Progress, ProgressHeader, ending, health_bar, observation, signs
from buttress.wording import clock

HEADING = ProgressHeader("toy-k3j9x2", "ari", "max", trials=24)
EVIDENCE = [
    {
        "metric": "latent/kl_total",
        "transform": "value",
        "values": [0.012, 0.0041],
        "threshold": 0.3,
        "comparison": "below",
        "reports": [[2, 80], [3, 120]],
    }
]
COLLAPSED: dict[str, Any] = {
    "outcome": "collapsed",
    "kind": "posterior_collapse",
    "rule": "posterior_collapse",
    "margin": 1.62,
    "evidence": EVIDENCE,
    "epochs": 3,
    "epochs_budget": 25,
    "best": {"epoch": 2, "step": 10, "metrics": {"ari": 0.9}},
}


def completed(ari: float) -> dict[str, Any]:
    best = {"epoch": 21, "step": 10, "metrics": {"ari": ari}}
    return {"outcome": "completed", "epochs": 25, "epochs_budget": 25, "best": best}


def terminal(width: int = 120, height: int = 30) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def drawn(progress: Progress) -> str:
    """The view as plain text."""
    console = Console(file=io.StringIO(), width=progress.console.width, color_system=None)
    console.print(progress.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def plain() -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(HEADING, Console(file=text, force_terminal=False, width=60)), text


# --- the live view ------------------------------------------------------------------------------------------------


def test_the_view_shows_header_running_trials_and_the_last_kills() -> None:
    progress = Progress(HEADING, terminal())
    progress.trial_started("0000", {"loss.beta": 0.1}, 0)
    progress.trial_started("0001", {"loss.beta": 9.0}, 1)
    progress.trial_ended("0000", completed(0.4123))
    progress.trial_ended("0001", COLLAPSED)
    progress.trial_started("0002", {"loss.beta": 0.2}, 0)
    progress.trial_started("0003", {"loss.beta": 0.3}, 1)
    health = {"latent/kl_total": 3.2145, "latent/active_kl": 5.0, "latent/dims": 10.0}
    progress.trial_reported("0002", 12, 25, {"ari": 0.402, **health}, "healthy", ())
    progress.trial_reported("0003", 4, 25, {**health, "latent/kl_total": 0.021}, "suspect", ("posterior_collapse",))
    lines = drawn(progress).splitlines()
    assert lines[0].startswith("toy-k3j9x2") and "2 of 24 trials" in lines[0] and "best ari 0.4123 (0000)" in lines[0]
    assert lines[1].split() == ["completed", "1", "collapsed", "1", "running", "2"]
    (healthy,) = [line for line in lines if line.startswith("0002")]
    assert "12/25" in healthy and "0.402" in healthy and "KL 3.21 nats, 5/10 active" in healthy and "healthy" in healthy
    (suspect,) = [line for line in lines if line.startswith("0003")]
    assert "4/25" in suspect and "KL 0.021 nats" in suspect and "suspect: posterior_collapse" in suspect
    (killed,) = [line for line in lines if line.startswith("0001")]
    assert "collapsed at epoch 3 of 25: posterior_collapse, margin +1.62, latent/kl_total 0.0041 < 0.3" in killed


def test_only_a_completed_trial_is_shown_as_best() -> None:
    progress = Progress(HEADING, terminal())
    progress.trial_ended("0000", completed(0.3))
    progress.trial_ended("0001", COLLAPSED)  # its best value, 0.9, is better
    progress.trial_ended("0002", {**completed(0.8), "outcome": "pruned"})
    progress.trial_ended("0003", completed(0.2))
    assert "best ari 0.3 (0000)" in drawn(progress)


def test_the_best_of_a_minimised_objective_is_the_smallest() -> None:
    progress = Progress(ProgressHeader("toy", "ari", "min"), terminal())
    for trial, value in (("0000", 0.3), ("0001", 0.1), ("0002", 0.2)):
        progress.trial_ended(trial, completed(value))
    assert "best ari 0.1 (0001)" in drawn(progress)


def test_a_health_report_keeps_the_objective_of_the_last_epoch() -> None:
    progress = Progress(HEADING, terminal())
    progress.trial_started("0000", {}, 0)
    progress.trial_reported("0000", 1, 25, {"ari": 0.25}, "healthy", ())
    progress.trial_reported("0000", 1, 25, {"latent/kl_total": 2.0, "ari": None}, "healthy", ())
    assert "0.25" in drawn(progress) and "KL 2 nats" in drawn(progress)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_view_fits_the_terminal(width: int) -> None:
    progress = Progress(HEADING, terminal(width, height=16))
    for trial in range(40):
        progress.trial_started(f"{trial:04}", {}, trial)
        progress.trial_reported(f"{trial:04}", 1, 25, {"ari": 0.1, "latent/kl_total": 0.1}, "suspect", ("rule",) * 9)
    for trial in range(40, 60):
        progress.trial_ended(f"{trial:04}", {"outcome": "failed", "error": "Traceback\n" + "x" * 500})
    lines = drawn(progress).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= width
    assert any("more" in line for line in lines)
    if width >= 80:
        assert any(line.startswith("0000") for line in lines)


def test_text_of_others_is_no_markup() -> None:
    progress = Progress(HEADING, terminal())
    progress.trial_ended("0001", {"outcome": "failed", "epochs": 0, "error": "ValueError: [bold]no such[/red] thing"})
    assert "ValueError: [bold]no such[/red] thing" in drawn(progress)


def test_live_starts_and_stops_and_leaves_the_last_state() -> None:
    console = terminal()
    threads = set(threading.enumerate())
    with Progress(HEADING, console) as progress:
        progress.trial_started("0000", {"loss.beta": 0.1}, 0)
        progress.on_message("slot 1 was restarted")
        progress.trial_ended("0000", completed(0.5))
    progress.stop()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "slot 1 was restarted" in text
    assert "best ari 0.5 (0000)" in text[text.rindex("toy-k3j9x2") :]
    for thread in set(threading.enumerate()) - threads:
        thread.join(5.0)
        assert not thread.is_alive()


# --- plain lines --------------------------------------------------------------------------------------------------


def test_without_a_terminal_a_line_per_start_and_end_and_a_status_at_the_end() -> None:
    progress, text = plain()
    progress.start()
    progress.trial_started("0000", {"loss.beta": 0.01234, "model.latent": 10}, 0)
    for _ in range(100):
        progress.trial_reported("0000", 1, 25, {"ari": 0.2}, "healthy", ())
    progress.trial_ended("0000", COLLAPSED)
    progress.on_message("a [note]")
    progress.stop()
    lines = [line.partition("  ")[2] for line in text.getvalue().splitlines()]
    assert lines == [
        "0000 started in slot 0: loss.beta=0.0123 model.latent=10",
        f"0000 collapsed at epoch 3 of 25: posterior_collapse, margin +1.62, {evidence_sentence(EVIDENCE[0])}",
        "a [note]",
        "1 of 24 trials (1 collapsed), 0 running",
    ]
    assert "\x1b" not in text.getvalue()


def test_without_a_terminal_a_status_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buttress.callbacks.progress.STATUS_EVERY_S", 0.02)
    progress, text = plain()
    progress.start()
    progress.trial_started("0000", {}, 0)
    deadline = time.monotonic() + 5.0
    while text.getvalue().count("0 of 24 trials, 1 running") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.stop()
    assert text.getvalue().count("0 of 24 trials, 1 running") >= 2


def test_what_happened_before_the_start_is_counted_and_not_shown() -> None:
    progress, text = plain()
    for trial in range(3):
        progress.on_event(event_of({"line": "outcome", "trial": f"{trial:04}", **completed(0.1 * trial)}))
    progress.start()
    assert text.getvalue() == ""
    progress.stop()
    assert "3 of 24 trials (3 completed), 0 running; best ari 0.2 (0002)" in text.getvalue()


def test_health_causes_of_death_and_the_time_that_is_left_are_shown() -> None:
    now = [0.0]
    progress = Progress(HEADING, terminal(160), clock_s=lambda: now[0])
    progress.start()
    for number, outcome in enumerate((COLLAPSED, COLLAPSED, {**completed(0.3)})):
        progress.trial_started(f"{number:04d}", {}, 0)
        progress.trial_ended(f"{number:04d}", outcome)
    progress.trial_started("0007", {}, 0)
    progress.trial_reported("0007", 5, 25, {"ari": 0.4}, "healthy", (), margin=-0.5)
    now[0] = 30.0
    progress.trial_reported("0007", 15, 25, {"ari": 0.4}, "healthy", (), margin=-0.5)
    view = drawn(progress)
    (row,) = [line for line in view.splitlines() if line.startswith("0007")]
    assert "15/25" in row and " 30s " in row and "\u2588" * 4 + "\u2591" * 4 in row
    assert "causes of death   posterior_collapse 2" in view
    assert f"about {clock(30 / 3 * (24 - 3))} left" in view  # three trials in 30 s, 21 to go
    progress.stop()


@pytest.mark.parametrize(
    ("margin", "full", "style"), [(-3.0, 8, "green"), (-0.25, 2, "yellow"), (-0.1, 1, "red"), (0.4, 0, "red")]
)
def test_the_health_bar_is_empty_at_the_threshold(margin: float, full: int, style: str) -> None:
    bar = health_bar(margin)
    assert bar.plain == "\u2588" * full + "\u2591" * (8 - full) and bar.style == style
    assert health_bar(None).plain == ""


def test_journal_lines_drive_it() -> None:
    progress, text = plain()
    live = SimpleNamespace(params={"loss.beta": 0.1}, epochs=25, evaluation=SimpleNamespace(margin=-0.5))
    progress.start()
    for line in (
        {"line": "trial", "trial": "0000", "ask": 0, "params": {}, "config": {}},
        {"line": "start", "trial": "0000", "slot": "slot-1", "attempt": 1},
        {
            "line": "report",
            "trial": "0000",
            "attempt": 1, "seq": 3, "epoch": 2, "step": 8, "full_beta_epochs": 2, "full_beta_steps": 8, "phase": 0,
            "metrics": {"ari": 0.3, "latent/kl_total": None},
            "state": "healthy",
            "suspects": [],
        },
        {"line": "lost", "trial": "0000", "reason": "the node went away"},
    ):
        progress.on_event(event_of(line), live)
    assert "2/25" in drawn(progress) and "lost" in drawn(progress)
    progress.on_event(event_of({"line": "start", "trial": "0000", "slot": "slot-0", "attempt": 2}), live)
    progress.on_event(event_of({"line": "outcome", "trial": "0000", **COLLAPSED}), None)
    progress.stop()
    assert "0000 started in slot 1: loss.beta=0.1" in text.getvalue()
    assert "0000 started again in slot 0" in text.getvalue()
    assert "1 of 24 trials (1 collapsed), 0 running" in text.getvalue()


# --- one and many threads -----------------------------------------------------------------------------------------


def test_many_threads_may_report_while_it_is_drawn() -> None:
    progress = Progress(HEADING, terminal())
    faults: list[BaseException] = []

    def work(slot: int) -> None:
        try:
            for number in range(50):
                trial = f"{slot}{number:03}"
                progress.trial_started(trial, {}, slot)
                progress.trial_reported(trial, 1, 2, {"ari": 0.1}, "healthy", ())
                progress.trial_ended(trial, completed(0.1) if number % 2 else COLLAPSED)
        except BaseException as fault:
            faults.append(fault)

    progress.start()
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        drawn(progress)
    progress.stop()
    assert faults == []
    assert "200 of 24 trials" in drawn(progress)


def test_a_report_costs_microseconds() -> None:
    progress = Progress(HEADING, terminal())
    progress.trial_started("0000", {}, 0)
    metrics = {"ari": 0.402, "latent/kl_total": 3.2, "latent/active_kl": 5.0, "latent/dims": 10.0}
    started = time.perf_counter()
    for _ in range(2000):
        progress.trial_reported("0000", 1, 25, metrics, "healthy", ())
    assert (time.perf_counter() - started) / 2000 < 1e-3


# --- wording ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"latent/kl_total": 3.2, "latent/active_kl": 5.0, "latent/dims": 10.0}, "KL 3.2 nats, 5/10 active"),
        ({"latent/kl_total": 0.0}, "KL 0 nats"),
        ({"latent/active_kl": 2.0}, "2 active"),
        ({"latent/kl_total": None, "fill": 0.5}, ""),
    ],
)
def test_signs_say_what_is_known(metrics: dict[str, float | None], text: str) -> None:
    assert signs(metrics) == text


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (completed(0.4), "at epoch 25 of 25: ari 0.4 at epoch 21"),
        ({"outcome": "failed", "epochs": 0, "epochs_budget": 9, "error": "Traceback\n  x\nMemoryError: 8 GB\n"},
         "at epoch 0 of 9: MemoryError: 8 GB"),
        ({"outcome": "failed", "epochs": 9, "epochs_budget": 9, "kind": "no valid epoch"},
         "at epoch 9 of 9: no valid epoch"),
        ({"outcome": "pruned", "epochs": 4, "epochs_budget": 9, "kind": "rung 4", "message": "worse than 0.2"},
         "at epoch 4 of 9: worse than 0.2"),
        ({"outcome": "diverged", "rule": "diverged", "margin": 12.9, "epochs": 1, "epochs_budget": 9},
         "at epoch 1 of 9: margin +12.90"),
        ({"outcome": "failed"}, "at epoch - of -"),
    ],
)  # fmt: skip
def test_an_ending_says_how_far_and_why(outcome: dict[str, Any], text: str) -> None:
    assert ending(outcome, "ari") == text


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (EVIDENCE[0], "latent/kl_total 0.0041 < 0.3"),
        ({"metric": "a", "transform": "slope", "values": (-0.2,), "comparison": "below", "threshold": 0.0},
         "slope of a -0.2 < 0"),
        ({"metric": "a", "values": [0.1, None], "comparison": "above", "threshold": 12}, "a - > 12"),
        ({"metric": "a", "transform": "absent", "values": [], "comparison": None, "threshold": None}, "a absent"),
        ({"metric": "a", "transform": "lost", "values": [], "comparison": None, "threshold": None}, "a lost"),
        ({"metric": "a", "transform": "nonfinite", "values": [None]}, "a not finite"),
    ],
)  # fmt: skip
def test_an_observation_is_a_comparison(evidence: dict[str, Any], text: str) -> None:
    assert observation(evidence) == text
