"""Every file that a verb reads may hold anything: the verb ends with a sentence and exit code 2, never with 3."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from journals import mixed_sweep
from test_cli import call

from buttress import journal

#: What a file may hold. None: a folder stands there; a path: a link.
CONTENTS: dict[str, bytes | Path | None] = {
    "nothing": b"",
    "a newline": b"\n",
    "NUL": b"\0" * 100,
    "no UTF-8": b"\xff\xfe\xfd" * 20,
    "brackets": b"[" * 5000,
    "brackets, closed": b"[" * 5000 + b"]" * 5000,
    "objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "a number": b"1" + b"0" * 5000,
    "a text": b"text",
    "a list": b"- 1\n- [2, {}]\n",
    "a mapping": b"a: {b: [1, null, .inf]}\n",
    "JSON": b'{"rules": 3, "search": [], "trainable": {}, "budget": null, "kind": 1e999, "buttress": 7}',
    "a table": b"a,b\n1,2\n3\n,,,,\n",
    "a table of epochs": b"epoch,step,trial,latent/kl_total,val/loss\nx,y,z,1,2\n1,2,nan,inf,-1e999\n",
    "a wide line": b"epoch," + b"x" * 300_000,
    "Parquet": b"PAR1" + b"\0" * 50 + b"PAR1",
    "zip": b"PK\3\4" + b"\0" * 60,
    "escapes": "\x1b[31m[/b]: \u202e\n".encode(),
    "a folder": None,
    "a loop": Path("file"),
}

@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: Calls that read FILE, each with the suffixes that decide how it is read.
CALLS = (
    ("plan FILE --no-timing", ".yaml"),
    ("run FILE --quiet", ".yaml"),
    ("train FILE", ".yaml"),
    ("replay FILE -f lithology", ".csv .parquet .jsonl .json .txt"),
    ("calibrate FILE -f lithology", ".csv .parquet"),
    ("replay curves.csv -f lithology --rules FILE", ".yaml"),
    ("cluster check FILE", ".yaml"),
    ("data check lithology FILE", ".csv .las"),
    ("data check rainfall FILE", ".nc .npy"),
    ("data check occupancy FILE", ".bin"),
    ("data check radio FILE", ".png"),
    ("table FILE", ".jsonl"),
    ("export FILE", ".jsonl"),
    ("export toy -o FILE", ".yaml"),
    ("report toy -o FILE/x.html", ".html"),
    ("plot toy history -o FILE/x.svg", ".svg"),
    ("ls FILE", ".txt"),
    ("diff toy FILE", ".jsonl"),
    ("plan good.yaml --no-timing --warm-start FILE", ".jsonl"),
    ("cluster token --path FILE", ".token"),
)


def lay(path: Path, content: bytes | Path | None) -> Path:
    if content is None:
        path.mkdir()
    elif isinstance(content, Path):
        path.symlink_to(path)
    else:
        path.write_bytes(content)
    return path


def ends_well(code: int, err: str) -> bool:
    return code in (0, 1, 2, 4) and "internal error" not in err and "Traceback" not in err


@pytest.mark.long
@pytest.mark.parametrize(("line", "suffixes"), CALLS, ids=[line for line, _ in CALLS])
def test_no_content_of_a_file_is_an_internal_error(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    line: str,
    suffixes: str,
) -> None:
    mixed_sweep().write(here / "runs")
    (here / "curves.csv").write_text("epoch,latent/kl_total\n1,0.5\n2,0.1\n")
    (here / "good.yaml").write_text(
        "{trainable: lithology, search: {loss.beta: {uniform: [0, 1]}}, objectives: [val/ari], budget: {trials: 2}}"
    )
    wrong = []
    for suffix in suffixes.split():
        for number, (name, content) in enumerate(CONTENTS.items()):
            path = lay(here / f"file{number}{suffix}", content)
            code, _, err = call(capfd, *line.replace("FILE", str(path)).split())
            if not ends_well(code, err) or (code == 2 and "buttress: " not in err and "check" not in line):
                wrong.append(f"{suffix} {name}: {code} {err[-300:]}")
    assert not wrong, "\n".join(wrong)


#: Names of things that are nothing.
NAMES = (
    "", " ", ".", "..", "/", "-", "~", "a" * 5000, "a/" * 3000, "a\udc80", "file://", "http://x", "://", "é\n",
    "%s", "{}", "0", "-1", "None",
)  # fmt: skip
VERBS = (
    "plan", "run", "resume", "table", "why NAME", "why toy", "status", "plot", "plot toy", "report", "export", "ls",
    "diff toy", "diff NAME", "train", "replay -f lithology", "replay curves.csv -f", "calibrate -f lithology",
    "data check", "data check lithology", "cluster check", "init", "export toy --trial", "export toy --optuna",
    "table toy --sort", "table toy -w", "plan lithology --profile", "plan lithology --set",
    "plan lithology --warm-start", "plot toy trial -t", "resume toy --hours", "resume toy --trials",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
def test_no_name_is_an_internal_error(here: Path, capfd: pytest.CaptureFixture[str], verb: str) -> None:
    mixed_sweep().write(here / "runs")
    (here / "curves.csv").write_text("epoch,latent/kl_total\n1,0.5\n2,0.1\n")
    wrong = []
    for name in NAMES:
        arguments = [name if part == "NAME" else part for part in verb.split()]
        if verb.startswith("resume toy"):
            arguments = [*arguments[:-1], f"{arguments[-1]}={name}"]
            if name in ("0", "-1"):
                continue  # another test's
        code, _, err = call(capfd, *arguments, *([] if "NAME" in verb or "resume toy" in verb else [name]))
        if not ends_well(code, err):
            wrong.append(f"{name[:20]!r}: {code} {err[-300:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
@pytest.mark.parametrize("damage", [*CONTENTS, "cut", "flipped"])
def test_a_damaged_sweep_hides_no_other(here: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    mixed_sweep().write(here / "runs")
    other = here / "runs" / "toy-zzzzzz"
    other.mkdir()
    whole = next((here / "runs").glob("toy-ab*/journal.jsonl")).read_bytes()
    content = CONTENTS.get(damage, whole[:77] if damage == "cut" else whole.replace(b'"0001"', b'"0\xff01"'))
    lay(other / journal.FILE, content)
    for beside, name in enumerate(("lock", "origin", "x")):
        lay(other / f"{journal.FILE}.{name}" if beside < 2 else other / "spec.yaml", content)
    code, out, err = call(capfd, "table", "toy-ab")
    assert code == 0 and "0001" in out, err
    code, out, err = call(capfd, "ls")
    assert code == 0 and "toy-ab12cd" in out, err
    code, out, err = call(capfd, "status", "toy-zz")
    assert ends_well(code, err), err
    for line in (
        "table toy",
        "resume toy-zz --quiet",
        "diff toy-zz toy-ab",
        "report toy-zz",
        "export toy-zz -o x.yaml",
    ):
        code, out, err = call(capfd, *line.split())
        assert ends_well(code, err), (line, err)


def mutated(text: str, draw: random.Random) -> bytes:
    """A YAML text with one to three of what goes wrong: values, keys, lines, bytes, structure."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        match draw.randrange(9):
            case 0:  # another value
                head, colon, _ = lines[at].partition(":")
                lines[at] = f"{head}{colon} {draw.choice(VALUES)}"
            case 1:
                lines.insert(at, lines[draw.randrange(len(lines))])
            case 2:
                del lines[at]
            case 3:
                lines[at] = " " * draw.randrange(8) + lines[at].strip()
            case 4:
                lines[at] += draw.choice(
                    ["\t", "\0", " #", ":", " :x", "]", "}", "\x1b[31m", "\u2028", " &a", " *a", " !!x"]
                )
            case 5:  # a character less, or another one
                if lines[at]:
                    spot = draw.randrange(len(lines[at]))
                    lines[at] = (
                        lines[at][:spot] + draw.choice(["", ":", "{", "[", "'", "-", "é"]) + lines[at][spot + 1 :]
                    )
            case 6:
                lines[at] = lines[at].replace(":", draw.choice([" ", "::", ": &x", ": *x", ": <<", ": |", ": >"]), 1)
            case 7:  # another section's lines
                start = draw.randrange(len(lines))
                lines[at:at] = [" " * draw.choice([0, 2, 4]) + each.strip() for each in lines[start : start + 3]]
            case _:
                lines[at] = f"{draw.choice(KEYS)}: {draw.choice(VALUES)}"
        lines = lines or [""]
    content = "\n".join(lines).encode("utf-8", "replace")
    if draw.random() < 0.1 and content:
        spot = draw.randrange(len(content))
        content = content[:spot] + bytes([draw.randrange(256)]) + content[spot + 1 :]
    return content


VALUES = (
    "", "null", "~", "true", "off", "0", "-1", "1e3", "1e308", "-1e308", "1e-320", ".inf", ".nan", "9" * 30,
    "1" + "0" * 400, "0x" + "f" * 40, "''", "text", "[]", "{}", "[1, 2]", "[0, 1]", "[a, [b]]", "{a: 1}",
    "{uniform: [0, 1]}", "{uniform: [0, 1], step: 0.3}", "{int: [1, 1e9]}", "{loguniform: [1e-300, 1e300]}",
    "{choice: [1, true, 1.0, [1], {a: 1}, '']}", "{choice: [{train.epochs: 2}, {}]}", "{choice: []}",
    "{when: config.train.epochs}", "{choice: [1], when: 'config.a.b > 3'}",
    "{int: [1, 5], when: 'config.loss.beta > 0.5'}", "'config.train.epochs > 0'", "['1 < 2', 'config.x']", "'(' ",
    "\"\\x00\"", "\"\\ud800\"", "2026-12-01", "12:30", "|", "[{metric: val/ari}]", "[val/ari, val/ari]",
    "config.loss", "lithology", "rainfall", "no_module:Class", "os:path", "builtins:int", "lithology:x", "..", "/",
    "a" * 3000, "[[[[[[[[[[[[]]]]]]]]]]]]", "'1 + ' ", "!!python/name:os.system", "*a", "&a [*a]", "<<: 1", "- 1",
    "? a", "@x", "`", "%x", "=",
)  # fmt: skip
KEYS = (
    "name", "trainable", "data", "data.kind", "fixed", "fixed.train.epochs", "search", "search.loss.beta",
    "require", "objectives", "rules", "scheduler", "sampler", "breaker", "warm_start", "budget", "audit",
    "resources", "wandb", "callbacks", "seed", "trial_seed", "profile", "profiles", "buttress", "  extends",
    "  kind", "  trials", "  step", "  when", "  train.epochs", "  path", "<<", "? [a]", "''", "1", "null",
)  # fmt: skip


def yaml_cases(count: int) -> Iterator[tuple[int, bytes, str]]:
    """Seed, mutated file and the profile that is asked for."""
    from buttress.api import search_spaces

    texts = [path.read_text() for path in search_spaces().values()]
    for seed in range(count):
        draw = random.Random(seed)
        yield seed, mutated(draw.choice(texts), draw), draw.choice(["", "quick", "full"])


def fuzz_specs(folder: Path, count: int) -> list[str]:
    """Cases that end neither as a checked spec nor as a sentence."""
    from buttress.errors import BadInput
    from buttress.execution.setup import load, resolve_rules
    from buttress.spec.spec import SweepSpec

    wrong, path = [], folder / "spec.yaml"
    for seed, content, profile in yaml_cases(count):
        path.write_bytes(content)
        try:
            spec = SweepSpec.load(path, profile or None)
            assert SweepSpec.from_dict(spec.to_dict()) == spec, "another spec when it is read back"
            checked, _ = load(spec)
            resolve_rules(checked)
        except BadInput as error:
            sentence = str(error)
            if not sentence.isprintable() or len(sentence) > 4000:
                wrong.append(f"{seed}: no sentence: {sentence[:200]!r}")
        except BaseException as error:
            wrong.append(f"{seed}: {type(error).__name__}: {str(error)[:200]}")
    return wrong


def test_a_mutated_search_space_is_a_spec_or_a_sentence(tmp_path: Path) -> None:
    assert not fuzz_specs(tmp_path, 300)


@pytest.mark.long
def test_five_thousand_mutated_search_spaces_are_specs_or_sentences(tmp_path: Path) -> None:
    assert not fuzz_specs(tmp_path, int(os.environ.get("BUTTRESS_FUZZ", "5000")))
