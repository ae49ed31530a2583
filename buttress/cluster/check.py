"""Checks a cluster file for `ray up`, or a RayCluster manifest, without contacting anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buttress.cluster import kuberay, ray_up
from buttress.cluster.findings import fit_findings
from buttress.errors import BadInput
from buttress.spec.yaml_io import read_documents, read_text

#: What the shipped files hold where only the user knows better: image ids of zeros, addresses reserved for examples.
_PLACEHOLDER = r"^ami-0+$|\bCHANGE\b|\byour-|\bexample\.(com|org|net)\b|\b(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+"
#: What a secret looks like, wherever it is.
_SECRETS = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a GitHub or Hugging Face token": r"\b(gh[pousr]|hf)_[A-Za-z0-9]{30,}",
    "a Ray token": r"(?<!sha256:)\b[0-9a-f]{64}\b",
}
_SECRET_NAME = r"(?i:[A-Z0-9_]*(?:SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|TOKEN|CREDENTIALS)(?:_ID)?)"
#: `WANDB_API_KEY=0123`; not `WANDB_API_KEY=$WANDB_API_KEY`, nor a path, nor a placeholder.
_ASSIGNMENT = rf"\b({_SECRET_NAME})=[\"']?[^\s\"'$~/<({{;]\S{{3,}}"


@dataclass(frozen=True)
class CheckResult:
    """The findings about a file; without any, what the cluster is (`summary`) and what is left to do before a start."""

    file: Path
    findings: tuple[BadInput, ...]
    summary: str | None = None
    todo: tuple[str, ...] = ()

    def line(self) -> str:
        """Returns one line about a file without findings."""
        return f"{self.file}: {self.summary}" + (f"; before a start: {', '.join(self.todo)}" if self.todo else "")

    def to_dict(self) -> dict[str, Any]:
        """Returns the result for JSON: file, ok, summary (null where there are findings), findings, todo."""
        found = [{"key": one.key, "problem": one.problem, "value": None if one.value is ... else one.value,
                  "accepted": one.accepted} for one in self.findings]  # fmt: skip
        result = {"file": str(self.file), "ok": not found, "summary": self.summary}
        return {**result, "findings": found, "todo": list(self.todo)}


def check(path: Path, spec: Any = None) -> CheckResult:
    """Checks a file for `ray up` or a RayCluster manifest.

    Args:
        path: The file.
        spec: A sweep (`SweepSpec`) whose trials have to fit the cluster; None: any cluster will do.

    Raises:
        BadInput: For a file that cannot be read, is not YAML, or holds neither kind of cluster.
    """
    trees = read_documents(path)
    kinds = [tree.get("kind") for tree in trees]
    manifest = any({"apiVersion", "kind"} & set(tree) for tree in trees)
    if manifest and "RayCluster" not in kinds:
        raise BadInput("holds no RayCluster", where=path, key="kind", value=", ".join(map(str, kinds)))
    cluster = trees[kinds.index("RayCluster") if manifest else 0]
    secrets = list(_secrets(read_text(path), trees))  # alone, as a finding about another fault may show its value
    found = secrets or (kuberay if manifest else ray_up).findings(cluster)
    if not found:
        name, nodes, total = (kuberay if manifest else ray_up).description(cluster)
        found += fit_findings(nodes, total, spec) if spec is not None else ()
    if found:
        return CheckResult(path, tuple({str(one): one.at(path) for one in found}.values()))
    summary = f"{name}; up to {total} workers: {', '.join(map(str, nodes))}; token authentication"
    open_keys = " and ".join(key for key, _, value in _texts(trees) if re.search(_PLACEHOLDER, value))
    todo = [f"fill in {open_keys}"] if open_keys else []
    token = Path(ray_up.TOKEN).expanduser()  # `ray up` copies it from here
    if not manifest and not token.exists():
        todo.append("make the token: buttress cluster token")
    elif not manifest and token.stat().st_mode & 0o077:
        todo.append(f"close the token to other users: chmod 600 {ray_up.TOKEN}")
    return CheckResult(path, (), summary, tuple(todo))


def _secrets(text: str, trees: list[dict[str, Any]]) -> Iterator[BadInput]:
    """Secrets in values, by key path, and in comments, by line; none is printed."""
    comments = [(f"line {number}", "", line.partition("#")[2]) for number, line in enumerate(text.splitlines(), 1)]
    for key, name, value in [*_texts(trees), *comments]:
        found = next((what for what, pattern in _SECRETS.items() if re.search(pattern, value)), None)
        if found is None and (assigned := re.search(_ASSIGNMENT, value)):
            found = f"a value for {assigned[1]}"
        elif found is None and re.fullmatch(_SECRET_NAME, name) and re.match(r"[^$~/<][^/]*$", value):
            found = f"a value for {name}"
        if found is not None:
            yield BadInput(f"{found} is in the file", key=key, accepted="the environment, or a mounted file of its own")


def _texts(tree: Any, path: tuple[str, ...] = (), name: str = "") -> Iterator[tuple[str, str, str]]:
    """Key path, name and text of every value. An entry `{name: X, value: Y}` of a container's `env` is X with Y."""
    if isinstance(tree, dict):
        entry = tree.get("name") if "value" in tree else None
        for key, value in tree.items():
            yield from _texts(value, (*path, key), str(entry) if key == "value" and entry else key)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _texts(value, (*path, str(number)) if path else (), name)
    elif isinstance(tree, str):
        yield ".".join(path), name, tree
