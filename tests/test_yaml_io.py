"""YAML input: what scalars mean, which files are refused and in which words, and that one module reads it all."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from buttress.errors import BadInput
from buttress.execution.local_training import read_config
from buttress.rules import RuleSet
from buttress.spec.yaml_io import parse_yaml, read_documents, read_yaml

ROOT = Path(__file__).parent.parent


def test_numbers_and_words_mean_what_they_look_like():
    tree = parse_yaml("{a: 3e-4, b: 1e3, c: 1_000, d: 0x10, e: 012, f: off, g: no, h: 12:30, i: 2024-01-01, j: true}")
    assert tree == {
        "a": 3e-4, "b": 1000.0, "c": 1000, "d": 16, "e": 12, "f": "off", "g": "no", "h": "12:30", "i": "2024-01-01",
        "j": True,
    }  # fmt: skip
    tree = parse_yaml("{a: '3e-4', b: ~, c: null, d: .5, e: -1.}")
    assert tree == {"a": "3e-4", "b": None, "c": None, "d": 0.5, "e": -1}
    assert parse_yaml("{a: &x {b: 1, c: 2}, d: {<<: *x, b: 3}}")["d"] == {"b": 3, "c": 2}


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("read", [read_yaml, read_documents, RuleSet.load, read_config])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: \xff\xfe", "is not a text file (byte 3 is not UTF-8)"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "line 4, column 3: `c` is given twice (first in line 3)"),
        (b"a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        (b"a: {b: [.nan]}\n", "a.b.0: has to be a finite number"),
        (b"a: &a [*a]\n", "nested too deeply"),
        (b"a: " + b"[" * 200 + b"]" * 200, "is nested too deeply (more than 100 levels)"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a: 1" + b"0" * 400, "a: is a whole number of more than 64 bits"),
        (b"a: 0x1" + b"0" * 9000, "a: is a whole number of more than 64 bits"),
        (b"a: 1" + b"0" * 9000, "is not YAML: Exceeds the limit (4300 digits)"),
        (b"a: " + b"x" * 10_000_000, "is longer than 10,000,000 characters"),
        (b"a: \x00", "a character that YAML does not allow"),
        (b"a: !!python/object/apply:os.system [ls]\n", "line 1, column 4: could not determine a constructor"),
        (b"", "the file is empty"),
        (b"- 1\n", "the file does not hold a mapping (got [1])"),
    ],
)
def test_specs_configs_rules_and_cluster_files_are_refused_in_the_same_words(tmp_path, read, content, says):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 400
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("first", "again"), [("[1, 2]", "[%s]"), ("{k: 1}", "{<<: [%s]}")])
def test_a_billion_laughs_are_refused_at_once(first, again):
    names = "abcdefghij"
    lines = [f"{name}: &{name} {again % ', '.join([f'*{below}'] * 9)}" for below, name in pairwise(names)]
    with pytest.raises(BadInput, match="holds more than 200,000 values"):
        parse_yaml("\n".join([f"a: &a {first}", *lines]))


def test_the_documents_of_a_manifest_are_read_as_kubernetes_reads_them(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("---\nkind: A\nport: 0o10\nhead: yes\nday: 2024-01-01\n---\n---\nkind: B\n8080: x\n")
    documents = read_documents(path)
    assert documents == [
        {"kind": "A", "port": "0o10", "head": True, "day": "2024-01-01"},
        {"kind": "B", "8080": "x"},
    ]
    path.write_text("kind: A\n---\n- 1\n")
    with pytest.raises(BadInput, match="does not hold a mapping"):
        read_documents(path)


def test_one_module_reads_yaml():
    pattern = r"yaml\.(safe_|full_|unsafe_)?load|from yaml import|\b(?!FunctionLoader\b)[A-Za-z]\w*Loader\b"
    readers = {
        str(path.relative_to(ROOT))
        for folder in ("buttress", "trainables", "analysis")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(pattern, path.read_text())
    }
    assert readers - {"buttress/cluster/check/check.py"} == {"buttress/spec/yaml_io.py"}
