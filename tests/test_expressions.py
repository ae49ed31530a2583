"""Expressions of `require` and `when`: their values, what is refused, and the column that an error names."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest
from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.spec.expressions import parse

CONFIG = {
    "loss": {"warmup": 5, "beta": 0.5, "kind": "focal", "free": True, "clip": None, "weights": [1, 2, 4]},
    "train": {"epochs": 20, "patience": 10},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("config.loss.warmup < config.train.epochs - config.train.patience", True),
        ("0 < config.loss.beta <= 0.5 < 1", True),
        ("0 < config.loss.beta < 0.5 < 1", False),
        ("config.loss.kind in ['focal', 'dice'] and not config.loss.clip == null", False),
        ("config.loss.kind not in ['dice'] and config.loss.free", True),
        ("config.loss.clip == null or config.loss.clip > 1", True),
        ("config.loss.clip != null and config.loss.clip > 1", False),
        ("3e-4 + 2 * 3 - 4 / 8", 5.5003),
        ("-7 // 2 + 7 % 4 - -1", 0),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("min(config.loss.warmup, 3) + max(1, 2, 4.5) + abs(-2)", 9.5),
        ("max(config.loss.weights) == 4 and 2 in config.loss.weights", True),
        ("'b' > 'a'", True),
        ("True == true and False == false and None == null", True),
        ("config.loss.warmup\n  < 6", True),
        ("not (config.loss.free and config.train.epochs > 30)", True),
    ],
)
def test_value(text, value):
    assert parse(text).evaluate(CONFIG) == (pytest.approx(value) if isinstance(value, float) else value)


def test_reads_lists_each_path_once_in_order():
    assert parse("config.b.x < config.a and config.b.x + min(config.c.d.e, 1) > 2").reads == ("b.x", "a", "c.d.e")


def test_expressions_read_nested_and_flat_mappings_models_enums_and_paths():
    class Kind(Enum):
        FOCAL = "focal"

    class Loss(BaseModel):
        kind: Kind = Kind.FOCAL
        root: Path = Path("data")
        dims: tuple[int, ...] = (64, 32)

    class Config(BaseModel):
        loss: Loss = Loss()

    text = "config.loss.kind == 'focal' and config.loss.root == 'data' and 64 in config.loss.dims"
    assert parse(text).holds(Config())
    assert parse(text).holds({"loss": Loss()})
    assert parse(text).holds({"loss.kind": "focal", "loss.root": "data", "loss.dims": [64]})


def test_and_or_stop_at_the_operand_that_decides():
    assert parse("config.loss.free or config.missing.path > 1").holds(CONFIG)
    assert not parse("config.loss.clip != null and config.loss.clip < 3").holds(CONFIG)
    with pytest.raises(BadInput, match=r"config\.missing\.path"):
        parse("not config.loss.free or config.missing.path > 1").holds(CONFIG)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("config.a <", "not an expression at its end"),
        ("config.a = 3", "not an expression at column 10"),
        ("(config.a", "not an expression"),
        ("1 < foo", "`foo` at column 5 is not a name"),
        ("foo.bar > 1", "`foo.bar` at column 1 is not a name"),
        ("config", "`config` at column 1 is not a name"),
        ("'ä' == config.b and loss.x > 1", "`loss.x` at column 21"),
        ("config.a ** 2 > 1", "`config.a ** 2` at column 1 uses an operator"),
        ("config.a is null", "write == or !="),
        ("config.a if true else 2", "is a choice by if"),
        ("__import__('os').system('ls')", "at column 1 calls something other than min, max or abs"),
        ("config.a.__class__()", "calls something other than min, max or abs"),
        ("sum([1, 2]) > 1", "`sum([1, 2])` at column 1"),
        ("max(1, key=2) > 1", "`max(1, key=2)` at column 1"),
        ("abs(1, 2) > 1", "gives abs 2 values"),
        ("config['a'] > 1", "write config.<group>.<name>"),
        ("lambda: 1", "is not part of the language"),
        ("[x for x in config.a]", "is not part of the language"),
        ("{1: 2} == 3", "`{1: 2}` at column 1"),
        ("f'{config}' == 'a'", "is not part of the language"),
        ("b'a' == 'a'", "`b'a'` at column 1 is a value that is not part"),
        ("1j > 2", "`1j` at column 1"),
        ("... == 1", "`...` at column 1"),
        ("(x := 3) > 1", "is not part of the language"),
        ("1 > 2 # comment\n3", "holds no comment"),
        ("(" * 400 + "1" + ")" * 400, "nested"),
        ("-" * 1900 + "1 > 0", "nested too deeply"),
        ("1 < " * 900 + "2", "2000 characters"),
    ],
)
def test_invalid_expressions_are_refused_with_their_column(text, says):
    with pytest.raises(BadInput) as error:
        parse(text).holds({"a": 1})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config.loss.nothing > 1", "`config.loss.nothing` at column 1 is not in the config"),
        ("config.loss.beta.deeper > 1", "`config.loss.beta.deeper` at column 1 is not in the config"),
        ("1 < config.loss.clip", "`config.loss.clip` at column 5 is null, and < compares"),
        ("config.loss.kind > 3", "compares the text 'focal' with 3"),
        ("config.loss.kind + 1 > 3", "`config.loss.kind` at column 1 is the text 'focal', and + takes numbers"),
        ("config.loss.free + 1 > 3", "`config.loss.free` at column 1 is true, and + takes numbers"),
        ("-config.loss.clip > 3", "`config.loss.clip` at column 2 is null, and - takes numbers"),
        ("config.loss.free > false", "is true, and > compares numbers or texts"),
        ("1 in config.loss.beta", "`config.loss.beta` at column 6 is 0.5, and in takes a list"),
        ("'f' in config.loss.kind", "is the text 'focal', and in takes a list"),
        ("min(config.loss.kind, 1) > 0", "`config.loss.kind` at column 5 is the text 'focal', and min takes numbers"),
        ("max([]) > 0", "max of an empty list"),
        ("1 / (config.loss.beta - 0.5) > 0", "`1 / (config.loss.beta - 0.5)` at column 1 divides by zero"),
        ("1 // 0 > 0", "divides by zero"),
        ("1 % 0 > 0", "divides by zero"),
        ("config.loss.warmup", "is 5, where true or false is needed"),
        ("config.loss.free and config.loss.kind", "`config.loss.kind` at column 22 is the text 'focal', where true"),
        ("not config.loss.clip", "`config.loss.clip` at column 5 is null, where true or false"),
        ("config.loss", "is a group, where true or false is needed"),
        ("config.loss.weights < 3", "is a list, and < compares"),
    ],
)
def test_operands_of_the_wrong_type_are_named(text, says):
    with pytest.raises(BadInput) as error:
        parse(text).holds(CONFIG)
    assert says in str(error.value)
    assert text in str(error.value)  # the expression as written
    assert "\n" not in str(error.value)


def test_overflow_is_an_error_of_the_expression():
    with pytest.raises(BadInput, match="cannot be computed"):
        parse("9" * 400 + " / 1 * 1.5 > 2").holds({})


def test_only_a_text_is_an_expression():
    with pytest.raises(BadInput, match="an expression is a text"):
        parse(3)  # type: ignore[arg-type]
