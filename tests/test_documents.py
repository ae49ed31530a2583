"""The documents: generated pages are current, commands and paths exist, the tutorial's trainer trains and resumes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({
    *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("trainables/**/*.md"),
    *ROOT.glob("search_spaces/*.md"), *ROOT.glob("examples/**/*.md"),
})
PAGES = ("spec.md", "rules.md", "trainer.md", "command_line.md")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str = "") -> list[str]:
    """Code blocks of a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.S | re.M)


# Generated pages


def test_every_generated_page_is_tested(generate: ModuleType) -> None:
    assert set(generate.PAGES) == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_current(page: str, generate: ModuleType) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text() == generate.page(page), "make reference writes it again"


def models(generate: ModuleType) -> list[type[BaseModel]]:
    from buttress.rules.schema import RuleSet
    from buttress.spec.spec import SweepSpec
    from buttress.training.trainable import Buttress

    return [one for top in (SweepSpec, RuleSet, Buttress) for one in (top, *generate.nested(top))]


def test_every_key_says_what_it_means(generate: ModuleType) -> None:
    own = {"Parameter"}  # has a table of its own
    silent = [f"{model.__name__}.{key}" for model in models(generate) if model.__name__ not in own
              for key, field in model.model_fields.items()
              if not field.description and key != "profile"]
    assert not silent


def test_every_metric_of_the_latent_monitor_is_on_the_trainers_page() -> None:
    import torch

    from buttress.monitors import LatentMonitor
    from buttress.monitors.summaries import merge_rows, pack_row

    monitor = LatentMonitor(dims=2)
    monitor.update(torch.randn(8, 2), torch.zeros(8, 2))
    row, layout = pack_row({"latent": monitor})
    metrics, vectors, _ = merge_rows(layout, row.unsqueeze(0))
    text = (ROOT / "docs" / "reference" / "trainer.md").read_text()
    assert not [key for key in (*metrics, *vectors) if f"`{key}`" not in text]


# What documents say


def test_documents_are_found() -> None:
    assert {"README.md", "docs/collapse.md", "trainables/radio/README.md", "benchmarks/README.md"} <= {
        name(path) for path in DOCUMENTS
    }


def test_files_that_documents_name_exist() -> None:
    folders = "buttress|trainables|analysis|search_spaces|benchmarks|tests|docs|clusters|examples|sweep|collapse"
    named = [(name(path), one) for path in DOCUMENTS if path.name != "CHANGELOG.md"
             for one in re.findall(rf"`((?:{folders})/[\w./-]*\w)`", path.read_text())]
    assert named
    assert not [(where, one) for where, one in named if not (ROOT / one).exists()]


def test_links_lead_to_files() -> None:
    missing = []
    for path in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^()\s#]+)(?:#[^()\s]*)?\)", prose):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                missing.append((name(path), target))
    assert not missing


def commands() -> list[tuple[str, str]]:
    """Every `buttress ...` line of a code block or in backticks, with its document."""
    found: list[tuple[str, str]] = []
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M):
            found += [(name(path), line.strip()) for line in block.splitlines() if line.strip().startswith("buttress ")]
        found += [(name(path), code) for code in re.findall(r"`(buttress [^`]*)`", text)]
    return [(where, line) for where, line in dict.fromkeys(found) if not re.match(r"buttress (\w+[,=:]|@|\d)", line)]


def test_commands_are_found() -> None:
    assert len(commands()) > 40


def test_commands_in_documents_have_verbs_and_options_that_exist() -> None:
    from buttress.cli.main import app

    unknown = []
    for where, line in commands():
        words = shlex.split(line.split(" #")[0].split(" && ")[0].replace("...", ""))[1:]
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        if hasattr(command, "commands") and words[0] not in options:
            unknown.append((where, line, words[0]))
        unknown += [(where, line, word) for word in words if word.startswith("-") and word.split("=")[0] not in options]
    assert not unknown


def test_documents_speak_of_packages_not_of_rooms() -> None:
    words = re.compile(r"\b(?:the|our|five|each|every) (?:rooms?|doors?|houses?)\b", re.I)
    told = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
    assert not [(name(path), hit.group()) for path in told for hit in words.finditer(path.read_text())]


# The tutorial's trainer

TUTORIAL = ROOT / "docs" / "tutorial" / "own_trainer.md"
TEMPLATES = ROOT / "buttress" / "cli" / "templates"


def changes() -> list[tuple[str, str]]:
    """The tutorial's changes to the trainer that `buttress init own` writes: pairs of before and after."""
    marked = [block for block in blocks(TUTORIAL, "python") if block.startswith(("# before\n", "# after\n"))]
    texts = [block.partition("\n")[2] for block in marked]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_the_tutorial_shows_what_init_writes() -> None:
    trainer, spec = (TEMPLATES / "my_vae.py").read_text(), (TEMPLATES / "my_vae.yaml").read_text()
    shown = [block for block in blocks(TUTORIAL, "python") if not block.startswith(("# before", "# after"))]
    assert len(shown) >= 4 and all(block in trainer for block in shown)
    assert blocks(TUTORIAL, "yaml") == [spec]
    assert len(changes()) == 4 and all(trainer.count(before) == 1 for before, _ in changes())


def test_the_tutorials_trainer_warms_up_reports_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from buttress.training import registry
    from buttress.training.reporting import Reporter
    from buttress.training.world import World

    text = (TEMPLATES / "my_vae.py").read_text()
    for before, after in changes():
        text = text.replace(before, after)
    (tmp_path / "tutorials_vae.py").write_text(text)
    monkeypatch.chdir(tmp_path)

    class Sink:
        stop = False

        def __init__(self) -> None:
            self.got: list[Any] = []

        def send(self, reported: Any) -> None:
            self.got.append(reported)

    trainable: Any = registry.load("tutorials_vae:MyVAE")

    def train(epochs: int, folder: str, resume: Path | None = None) -> list[Any]:
        config = trainable.Config(epochs=epochs, buttress={"report_every": 16})
        world, sink = World.single(tmp_path / folder, seed=3), Sink()
        (tmp_path / folder).mkdir()
        with Reporter(world, trainable.schedule(config), sink) as report:
            trainable.train(config, world, report, resume)
        return sink.got

    first = train(2, "first")
    assert [(one.epoch, one.step) for one in first] == [(0, 16), (1, 32), (1, 48), (2, 64)]
    assert "val/elbo" not in first[0].metrics and first[1].metrics["latent/kl_total"] > 0
    went_on = train(6, "second", tmp_path / "first" / first[-1].checkpoint)
    assert (went_on[0].epoch, went_on[-1].epoch) == (2, 6)
    assert went_on[-1].full_beta_epochs == 2  # beta was final after the fourth
    assert went_on[-1].metrics["val/elbo"] < first[-1].metrics["val/elbo"]


def test_the_json_examples_of_documents_are_json() -> None:
    assert all(json.loads(block) is not None for path in DOCUMENTS for block in blocks(path, "json"))
