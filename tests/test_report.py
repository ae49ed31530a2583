"""The report: what it says is the journal's, nothing foreign is markup, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from journal_lines import event_of
from journals import SyntheticSweep, mixed_sweep
from test_figures import killing_sweep
from typer.testing import CliRunner

import buttress
from buttress.analysis.advice import advice, edges, silent_rules, thin_corners, trends
from buttress.analysis.report import report, trial_page
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.journal import Best, read


class Page(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report(mixed_sweep().journal()))


def test_it_says_what_won_and_what_died(page: Page) -> None:
    assert "Trial 0001 is best: ari 0.52, by 0.11 before trial 0000 (0.41)." in page.text
    assert "2 completed" in page.text and "1 collapsed" in page.text and "1 diverged" in page.text
    assert "collapsed: posterior_collapse" in page.text
    assert "0.231 was worse than the cut-off 0.254 of 9 trials" in page.text
    assert "22 of 50 budgeted epochs were run; stopping early saved 56 %." in page.text  # the failed one saved nothing
    for trial in ("0000", "0001", "0002", "0003", "0004", "0005", "0006"):
        assert f"Trial {trial} of toy-ab12cd" in page.text


def test_it_needs_nothing_from_elsewhere_and_has_words_for_every_picture(page: Page) -> None:
    images = page.all("img")
    assert len(images) >= 10
    for image in images:
        assert str(image["src"]).startswith("data:image/svg+xml;base64,") and len(str(image["alt"])) > 10
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            assert not str(attrs.get(name) or "").startswith(("http", "//", "file")), (tag, attrs)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(link["href"])[1:] for link in page.all("a")} <= set(ids)
    assert page.all("html") == [{"lang": "en"}] and not page.all("meta")[-1].get("content", "").startswith("60")


def test_a_running_sweeps_page_loads_itself_again() -> None:
    text = report(mixed_sweep().journal(alive=True), running=True)
    assert '<meta http-equiv="refresh" content="60">' in text and "running" in Page(text).text


def test_texts_of_trainers_and_files_are_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    book = SyntheticSweep(search=(evil, "b"), objectives={f"val/{evil}": "max"})
    book.completed("0000", {evil: 0.1, "b": evil}, **{f"val/{evil}": [0.5]})
    book.failed("0001", {evil: 0.2, "b": "{{ 7 * 7 }}"}, error=f"RuntimeError: {evil}")
    text = report(book.journal())
    found = Page(text)
    assert len(found.all("script")) == 1 and evil in found.text
    assert "{{ 7 * 7 }}" in found.text


@pytest.mark.parametrize("trials", [0, 1])
def test_a_sweep_that_has_just_begun_has_a_page(trials: int) -> None:
    book = SyntheticSweep()
    for number in range(trials):
        book.trial(f"{number:04d}")
    assert "No trial is healthy" in Page(report(book.journal())).text


def test_the_verb_writes_the_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = mixed_sweep().write(tmp_path / "runs")
    done = CliRunner().invoke(app, ["report", "toy"])
    assert done.exit_code == 0 and done.stdout.strip() == f"wrote {journal.parent / 'report.html'}"
    assert (journal.parent / "report.html").read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        buttress.load(journal.parent).report(tmp_path / "file" / "report.html")


def test_a_running_sweep_writes_its_page_in_another_process_and_at_most_once_a_minute(tmp_path: Path) -> None:
    from buttress.callbacks.report import ReportPage

    journal = mixed_sweep().write(tmp_path)
    ended = next(line for line in mixed_sweep().lines if line["line"] == "outcome")
    callback = ReportPage(journal.parent)
    callback.on_event(event_of(mixed_sweep().lines[0]))
    assert callback._process is None
    callback.on_event(event_of(ended))
    begun = callback._process
    assert begun is not None
    assert begun.wait(timeout=120) == 0 and (journal.parent / "report.html").is_file()
    callback.on_event(event_of(ended))
    assert callback._process is begun
    callback.close()


# --- advice -----------------------------------------------------------------------------------------------------------


def test_a_winner_at_the_edge_of_its_range_is_said() -> None:
    book = SyntheticSweep()
    book.completed("0000", {"loss.beta": 0.99, "train.lr": 0.5}, ari=[0.9])
    book.completed("0001", {"loss.beta": 0.5, "train.lr": 0.01}, ari=[0.1])
    (edge,) = edges(book.journal())
    assert (edge.path, edge.side, edge.bound) == ("loss.beta", "upper", 1.0)
    assert "at the upper end of its range (1): widen it" in advice(book.journal())[0]


def test_edges_of_log_ranges_are_judged_on_the_log_scale() -> None:
    book = SyntheticSweep()
    book.lines[0]["spec"]["search"] = {"loss.beta": {"loguniform": [1e-4, 1.0]}, "train.lr": {"uniform": [0, 1]}}
    book.completed("0000", {"loss.beta": 0.01, "train.lr": 0.5}, ari=[0.9])  # 1 % of the range, half of its decades
    assert not edges(book.journal())


def test_an_objective_that_a_parameter_can_buy_is_said() -> None:
    found = trends(killing_sweep().journal())
    assert [(trend.path, trend.side) for trend in found] == [("train.lr", "upper")] and found[0].rho == pytest.approx(1)


def test_corners_that_were_hardly_tried_are_named() -> None:
    book = SyntheticSweep(search=("kind", "train.lr"))
    book.lines[0]["spec"]["search"] = {"kind": {"choice": ["a", "b"]}, "train.lr": {"uniform": [0, 1]}}
    for number in range(9):
        book.completed(f"{number:04d}", {"kind": "a", "train.lr": 0.05 + 0.07 * number}, ari=[0.1])
    assert thin_corners(book.journal()) == ["kind b (0 trials)", "the upper third of train.lr (0 trials)"]


def test_rules_that_never_spoke_are_told_from_those_that_could_not() -> None:
    book = SyntheticSweep()
    sign = {"metric": "vq/perplexity", "transform": "value", "below": 2}
    book.lines[0]["rules"] = {"rules": {
        "dead_codes": {"action": "kill", "signs": [sign]},
        "posterior_collapse": {"action": "kill", "signs": [{**sign, "metric": "latent/kl_total"}]},
        "weak": {"action": "warn", "signs": [sign]},
    }}  # fmt: skip
    book.completed("0000", ari=[0.1])
    assert silent_rules(book.journal()) == (["posterior_collapse"], ["dead_codes"])
    said = "dead_codes stops no trial: vq/perplexity was never reported"
    assert said in advice(book.journal())


# --- the page of one trial --------------------------------------------------------------------------------------------

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A sweep whose best trial has reported pictures at its second epoch, and one that wants out of its folder."""
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.1}, media={"map": "map-1.png"})
    media = {"map <b>": "map-2.png", "secret": "../../../secret.png", "film": "film.mp4"}
    book.epoch("0000", 2, {"ari": 0.4}, media=media)
    best = Best(2, 100, {"ari": 0.4}, 2, 1, "checkpoint-0002.pt")
    book.outcome("0000", "completed", epochs=2, best=best, margin=-1.0)
    path = book.write(tmp_path)
    folder = path.parent / "trials" / "0000"
    folder.mkdir(parents=True)
    for file in (folder / "map-1.png", folder / "map-2.png", folder / "film.mp4", tmp_path / "secret.png"):
        file.write_bytes(PIXEL)
    (folder / "output.txt").write_text("epoch 1\n<script>alert(1)</script>\n")
    return path.parent


def test_the_page_of_a_trial_shows_what_it_reported_and_printed(pictured: Path) -> None:
    text = trial_page(read(pictured / "journal.jsonl"), "0")
    page = Page(text)
    (reported,) = [each for each in page.all("img") if str(each["src"]).startswith("data:image/png")]
    assert str(reported["alt"]).startswith("map <b>: trial 0000, epoch 2")  # neither the film nor what lies outside
    assert reported["src"] == f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    assert "<script>" not in text and "<script>alert(1)</script>" in page.text
    assert "warmup" not in page.text and "loss:" in page.text  # its config
    assert not [each for tag, each in page.tags if tag in ("link", "script", "iframe")]


def test_show_writes_the_page_beside_the_trial(pictured: Path) -> None:
    told = CliRunner().invoke(app, ["show", str(pictured), "0", "--no-open"])
    assert told.exit_code == 0 and (pictured / "trials" / "0000" / "trial.html").is_file()
    with pytest.raises(BadInput):
        buttress.load(str(pictured)).trials[0].page("/proc/nowhere/x.html")


def test_the_report_shows_what_the_best_trial_drew(pictured: Path) -> None:
    page = Page(report(read(pictured / "journal.jsonl")))
    assert "What the best trial, 0000, reported at its best epoch" in page.text
    assert len([each for each in page.all("img") if str(each["src"]).startswith("data:image/png")]) == 1
