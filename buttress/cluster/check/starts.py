"""The commands that start Ray on a node, taken apart as the shell would, and judged one by one.

A start command is a line of shell such as `ulimit -n 65536; RAY_AUTH_MODE=token ray start --head --port=6379`. `read`
finds the call of `ray start` in it, with the environment and the limit it runs under; `judge` says what is wrong with
it for a head or a worker. Options are held against those of the installed Ray.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from buttress.cluster.check.findings import Finding
from buttress.errors import BadInput

#: Every worker of a slot, its helpers and the object store hold sockets and files; Ray itself advises 65536.
LEAST_FILES = 8192
#: Ray refuses an object store below 75 MiB.
LEAST_OBJECT_STORE = 78_643_200
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BOOTSTRAP = "~/ray_bootstrap_config.yaml"
GCS_PORT = "6379"
_SEPARATORS = {";", "&&", "||", "|", "&", "\n"}
_REDIRECTION = re.compile(r"(?<=\s)\d?[<>]{1,2}(?:&\d|\s*[^\s;&|]+)")
_PREFIXES = ("env", "exec", "export", "nohup", "setsid")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)

Role = Literal["head", "worker"]


@dataclass(frozen=True)
class RayStart:
    """One call of `ray start`: its words after `start`, the variables set for it, and the limit of open files."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    files: str | None = None  # the argument of `ulimit -n`
    files_strict: bool = False  # `&&` behind it: a lower hard limit keeps Ray from starting


def read(command: str) -> list[RayStart]:
    """The calls of `ray start` in a line of shell. Raises ValueError where its quotes do not close."""
    found: list[RayStart] = []
    exported: dict[str, str] = {}
    files, strict = None, False
    for words, separator in _simple_commands(command):
        own: dict[str, str] = {}
        rest = list(words)
        while rest and ((given := _ASSIGNMENT.fullmatch(rest[0])) or rest[0] in _PREFIXES):
            word = rest.pop(0)
            if given is not None:
                own[given[1]] = given[2]
            elif word == "export":
                exported |= {each[1]: each[2] for each in map(_ASSIGNMENT.fullmatch, rest) if each}
        if rest[:1] == ["ulimit"] and "-n" in rest[1:-1]:
            files, strict = rest[rest.index("-n") + 1], separator == "&&"
        if len(rest) > 1 and PurePosixPath(rest[0]).name == "ray" and rest[1] == "start":
            found.append(RayStart(tuple(rest[2:]), {**exported, **own}, files, strict))
    return found


def _simple_commands(command: str) -> Iterator[tuple[list[str], str]]:
    """The words of each simple command, and the separator that follows it."""
    command = _REDIRECTION.sub(" ", command.replace("\\\n", " "))
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in lexer:
        if (separator := word.strip("\n") or "\n") in _SEPARATORS:
            yield words, separator
            words = []
        else:
            words.append(word)
    yield words, ""


def options(start: RayStart) -> dict[str, Any]:
    """Option (`dashboard_host`) -> value as text, or True for a flag. Raises BadInput for what Ray does not know."""
    import click
    from ray.scripts.scripts import start as command

    try:
        given, extra, _ = command.make_parser(click.Context(command)).parse_args(list(start.words))
    except click.exceptions.NoSuchOption as error:
        close = ", ".join(error.possibilities or [])
        raise BadInput("unknown option of ray start", value=error.option_name, accepted=close or None) from None
    except click.exceptions.UsageError as error:
        raise BadInput(f"ray start would refuse it: {error.message}") from None
    if extra:
        raise BadInput("stands behind ray start and is no option", value=" ".join(extra))
    return dict(given)


def judge(start: RayStart, role: Role, key: str, *, port: str = GCS_PORT, monitor: bool = True) -> list[Finding]:
    """Everything that is wrong with a start command of a file for `ray up`; `port` is the head's.

    `monitor`: whether the cluster autoscales, so that its head needs the autoscaling config.
    """
    try:
        given = options(start)
    except BadInput as error:
        return [BadInput(error.problem, key=key, value=error.value, accepted=error.accepted)]
    return [
        *_authentication(start.environment, key),
        *(_head(given, key, monitor) if role == "head" else _worker(given, key, port)),
        *usage(given, start.environment, key),
        *object_store(given, key),
        *_open_files(start, key),
    ]


def _authentication(environment: dict[str, str], key: str) -> list[Finding]:
    if "RAY_AUTH_MODE" not in environment:
        problem = "starts Ray without saying the authentication mode, so that head and workers may differ"
        return [BadInput(problem, key=key, accepted="RAY_AUTH_MODE=token ray start ...")]
    if environment["RAY_AUTH_MODE"].lower() != "token":
        problem = "lets anyone in who reaches the port"
        return [BadInput(problem, key=key, value=environment["RAY_AUTH_MODE"], accepted="RAY_AUTH_MODE=token")]
    return []


def _head(given: dict[str, Any], key: str, monitor: bool) -> list[Finding]:
    found = []
    if not given.get("head"):
        found.append(BadInput("does not start a head", key=key, accepted="ray start --head"))
    if monitor and given.get("autoscaling_config") is None:
        problem = "leaves out the autoscaling config, so the head never starts a worker"
        found.append(BadInput(problem, key=key, accepted=f"--autoscaling-config={BOOTSTRAP}"))
    elif monitor and given["autoscaling_config"] not in (BOOTSTRAP, BOOTSTRAP.replace("~", "$HOME")):
        problem = "reads an autoscaling config that `ray up` does not write"
        value = given["autoscaling_config"]
        found.append(BadInput(problem, key=key, value=value, accepted=f"--autoscaling-config={BOOTSTRAP}"))
    return found + dashboard(given.get("dashboard_host", LOOPBACK[0]), key)


def _worker(given: dict[str, Any], key: str, port: str) -> list[Finding]:
    accepted = f"--address=$RAY_HEAD_IP:{port}"
    if given.get("head"):
        return [BadInput("makes every worker a head of its own", key=key, accepted=accepted)]
    address = given.get("address")
    if address is None:
        return [BadInput("does not say where the head is", key=key, accepted=accepted)]
    host, _, told = str(address).rpartition(":")
    if host not in ("$RAY_HEAD_IP", "${RAY_HEAD_IP}"):
        problem = "names the head by something else than $RAY_HEAD_IP, which `ray up` sets"
        return [BadInput(problem, key=key, value=address, accepted=accepted)]
    if told != port:
        problem = f"goes to another port than the head listens on ({port})"
        return [BadInput(problem, key=key, value=address, accepted=accepted)]
    return []


def dashboard(host: Any, key: str) -> list[Finding]:
    if str(host) in LOOPBACK:
        return []
    problem = "the dashboard takes jobs and listens beyond the head's loopback"
    return [BadInput(problem, key=key, value=host, accepted="127.0.0.1, reached through `ray dashboard`")]


def usage(given: dict[str, Any], environment: dict[str, str], key: str) -> list[Finding]:
    if given.get("disable_usage_stats") or environment.get("RAY_USAGE_STATS_ENABLED") == "0":
        return []
    return [BadInput("sends usage statistics", key=key, accepted="--disable-usage-stats")]


def object_store(given: dict[str, Any], key: str) -> list[Finding]:
    size = given.get("object_store_memory")
    accepted = f"--object-store-memory=BYTES, at least {LEAST_OBJECT_STORE}"
    if size is None:
        problem = "does not size the object store, which then takes 30 % of the memory, whatever /dev/shm holds"
        return [BadInput(problem, key=key, accepted=accepted)]
    if not str(size).isdecimal():
        problem = "the size of the object store is not a number of bytes"
        return [BadInput(problem, key=key, value=size, accepted=accepted)]
    if int(size) < LEAST_OBJECT_STORE:
        return [BadInput("the object store is smaller than Ray takes", key=key, value=int(size), accepted=accepted)]
    return []


def _open_files(start: RayStart, key: str) -> list[Finding]:
    if start.files is None:
        problem = "does not raise the limit of open files, which is 1024 on most images"
        return [BadInput(problem, key=key, accepted="ulimit -n 65536; before ray start")]
    if start.files_strict:
        problem = "a host with a lower hard limit would not start Ray at all"
        return [BadInput(problem, key=key, value=f"ulimit -n {start.files} &&", accepted="; behind ulimit")]
    if not start.files.isdecimal() or int(start.files) < LEAST_FILES:
        problem = "the limit of open files is too low"
        value = f"ulimit -n {start.files}"
        return [BadInput(problem, key=key, value=value, accepted=f"at least {LEAST_FILES}, better 65536")]
    return []
