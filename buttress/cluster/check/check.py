"""The door of the checks: a file in, its findings or its summary out."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from buttress.cluster.check import kuberay, launcher
from buttress.cluster.check.findings import Checked, Finding, path_of
from buttress.cluster.check.leaks import leaks
from buttress.errors import BadInput

#: What the shipped files hold where only the user knows better: image ids of zeros, addresses reserved for examples.
_PLACEHOLDER = re.compile(
    r"^ami-0+$|\bCHANGE\b|\byour-|\bexample\.(?:com|org|net)\b|\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d+"
)


def check(path: Path, spec: Any = None) -> Checked:
    """Judges a file for `ray up` or a RayCluster manifest; `spec`: a sweep (`SweepSpec`) that is to fit the cluster.

    Raises BadInput for a file that is not there or holds no YAML mapping.
    """
    text, documents = _read(path)
    manifest = any("apiVersion" in each or "kind" in each for each in documents)
    if manifest and not any(each.get("kind") == "RayCluster" for each in documents):
        kinds = ", ".join(str(each.get("kind")) for each in documents)
        raise BadInput("holds no RayCluster", where=path, key="kind", value=kinds, accepted="RayCluster")
    found = leaks(text, [each for each in documents if each.get("kind") != "Secret"])
    found += kuberay.check(documents, spec) if manifest else launcher.check(documents[0], spec)
    if found:
        return Checked(path, tuple(_one_each(finding.at(path) for finding in found)))
    summary = kuberay.summary(documents) if manifest else launcher.summary(documents[0])
    open_keys = list(_placeholders(documents))
    todo = [f"fill in {' and '.join(open_keys)}"] if open_keys else []
    if not manifest:
        todo += _token_here()
    return Checked(path, (), summary, tuple(todo))


def _read(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The file's text and its documents, read as Ray and Kubernetes read them."""
    from buttress.spec.yaml_io import parse_yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"cannot be read: {said}", where=path) from None
    for part in re.split(r"(?m)^---\s*$", text):
        parse_yaml(part, where=path)  # tells of faults, of keys given twice too, in our words
    documents = [each for each in yaml.safe_load_all(text) if each is not None]
    if not documents or not all(isinstance(each, dict) for each in documents):
        accepted = "a file for `ray up`, or a RayCluster manifest"
        raise BadInput("the file does not hold a mapping", where=path, accepted=accepted)
    return text, documents


def _one_each(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Every sentence once."""
    seen = set()
    for finding in findings:
        if str(finding) not in seen:
            seen.add(str(finding))
            yield finding


def _placeholders(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[str]:
    """Key paths of the values that a user has to fill in."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _placeholders(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _placeholders(value, (*path, number) if path else ())
    elif isinstance(tree, str) and _PLACEHOLDER.search(tree):
        yield path_of(*path)


def _token_here() -> list[str]:
    """What is wrong with the token on this machine, from which `ray up` takes it."""
    token = Path(launcher.TOKEN).expanduser()
    try:
        mode = token.stat().st_mode
    except OSError:
        return ["make the token: buttress cluster token"]
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [f"close the token to other users: chmod 600 {launcher.TOKEN}"]
    return []
