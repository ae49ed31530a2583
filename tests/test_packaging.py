"""One import name: what a wheel holds, and that it runs among a user's own modules, whatever those are called."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from conftest import LINKED, bare_modules

ROOT = Path(__file__).parents[1]
#: Names that Buttress once took at the top level, and that belong to its users.
ONCE_OURS = ("sweep", "analysis", "collapse", "search_spaces", "trainables")
#: Folders of a checkout that are not part of it.
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "runs", "wandb", "build", "dist", "site", "node_modules"
)


def sources(*suffixes: str) -> Iterator[Path]:
    """Files of the checkout with one of these suffixes. Starts at the root and follows no link, so each comes once."""
    for folder, folders, files in os.walk(ROOT):
        left_out = NOT_SOURCE(folder, folders) - {".ci"}
        folders[:] = sorted(set(folders) - left_out)
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(suffixes))


# What is built


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as a clone has it, links as links: building writes into it."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "buttress", symlinks=True, ignore=NOT_SOURCE))


def build(kind: str, folder: Path) -> Path:
    """The `wheel` or `sdist` of the project in `folder`, by the installed setuptools; nothing is downloaded."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def wheel(checkout: Path) -> Path:
    return build("wheel", checkout)


def files_of_the_wheel(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def files_of_the_package() -> set[str]:
    """What a wheel has to hold: every module, and the data files beside them. Links are followed here."""
    data = {".py", ".yaml", ".md", ".typed", ".j2", ".css"}
    found: set[str] = set()
    for folder, _, files in os.walk(ROOT / "buttress", followlinks=True):
        found |= {str((Path(folder) / name).relative_to(ROOT)) for name in files if Path(name).suffix in data}
    return found


def test_a_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    held = files_of_the_wheel(wheel)
    assert held == files_of_the_package()
    assert {PurePosixPath(name).parts[0] for name in held} == {"buttress"}
    families = {path.parent.name for path in ROOT.glob("trainables/*/train.py")}
    assert held >= {
        "buttress/py.typed",
        "buttress/rules/default.yaml",
        "buttress/analysis/report.html.j2",
        "buttress/analysis/table.py",
        "buttress/search_spaces/README.md",
        "buttress/trainables/README.md",
        *(f"buttress/search_spaces/{name}.yaml" for name in families),
        *(f"buttress/trainables/{name}/rules.yaml" for name in families),
    }


@pytest.mark.long
def test_a_wheel_from_the_source_distribution_is_the_same(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", checkout)
    with tarfile.open(archive) as tar:
        assert {PurePosixPath(name).parts[0] for name in tar.getnames()} == {archive.name.removesuffix(".tar.gz")}
        tar.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / archive.name.removesuffix(".tar.gz"))
    assert files_of_the_wheel(again) == files_of_the_wheel(wheel)


def test_the_folders_at_the_top_are_linked_into_the_package() -> None:
    for name in LINKED:
        link = ROOT / "buttress" / name
        assert link.is_symlink() and link.readlink() == Path("..") / name


# Who imports what by which name


def imports(code: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def test_no_module_imports_what_is_ours_without_its_package() -> None:
    suspects = re.compile(rf"^[ \t]*(?:from|import)\b.*\b(?:{'|'.join(ONCE_OURS)})\b", re.M)
    texts = {path: path.read_text() for path in sources(".py")}
    assert len(texts) > 200
    found = [f"{path.relative_to(ROOT)}:{line} {name}" for path, text in texts.items() if suspects.search(text)
             for line, name in imports(text) if name in ONCE_OURS]
    assert not found


@pytest.mark.parametrize(
    "line", ["from sweep import CollapseStopper", "python -m trainables.rainfall.prepare", "trainable: trainables.x:Y"]
)
def test_the_search_for_bare_names_finds_them(line: str) -> None:
    assert BARE.search(line)


#: A bare name as an import, as `python -m`, or as what a spec calls its trainable.
BARE = re.compile(rf"(?:^|[\s`\"'])(?:from |import |-m |trainable: )(?:{'|'.join(ONCE_OURS)})(?:\.| import|$|:)", re.M)


def test_no_document_no_yaml_and_no_script_names_what_is_ours_without_its_package() -> None:
    others = [ROOT / "Makefile", ROOT / "README.md", *ROOT.glob(".ci/*")]
    texts = {*sources(".md", ".yaml", ".yml", ".toml", ".sh", ".ipynb"), *others}
    assert len(texts) > 20
    assert not [f"{path.relative_to(ROOT)}: {hit.group().strip()}" for path in sorted(texts)
                for hit in BARE.finditer(path.read_text())]


def test_a_bare_import_of_a_folder_of_ours_is_noticed(tmp_path: Path) -> None:
    code = """if True:
        import sys, buttress.trainables
        sys.path.append("tests")
        from conftest import bare_modules
        print(bare_modules(sys.modules))
        import analysis.intervals
        print(bare_modules(sys.modules))"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "['analysis', 'analysis.intervals']"]
    users = types.ModuleType("analysis")
    users.__file__ = str(tmp_path / "analysis" / "__init__.py")
    assert bare_modules({"analysis": users}) == []


# An environment of its own


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees the libraries of this one, and not its Buttress."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    # A folder named in a .pth file is searched; the .pth files in it (an editable install's finder) are not read.
    libraries = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    done = subprocess.run(
        [folder / "bin/python", "-c", "import torch, ray, buttress"], cwd=folder, env=clean(), capture_output=True,
        text=True, check=False,
    )
    assert "No module named 'buttress'" in done.stderr
    return folder


def clean() -> dict[str, str]:
    """The environment of a user's shell: nothing of this test run leads to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BUTTRESS_CACHE")}
    return environment | {"COLUMNS": "160"}


def install(environment: Path, *what: str | Path) -> None:
    options = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall", "--no-index"]
    command = [sys.executable, "-m", "pip", "--python", environment / "bin/python", *options, *what]
    done = subprocess.run(command, cwd=environment, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


#: Modules and packages of a user that have the names of ours, present and past.
USERS_MODULES = (
    *(f"{name}.py" for name in ("sweep", "collapse", "spec", "journal", "rules", "api", "errors", "storage", "search",
                                "training", "execution", "monitors", "callbacks", "cli", "cluster", "tune", "compat")),
    *(f"{name}/__init__.py" for name in ("analysis", "trainables", "search_spaces", "tests", "benchmarks")),
)


def users_folder(folder: Path, root: Path, trainer: str) -> Path:
    """A user's research folder: modules with the names of ours, and the README's trainer, which uses two of them."""
    for name in USERS_MODULES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'WHOSE = "the user\'s {name}"\n')
    (folder / "analysis" / "latents.py").write_text("def centre(x):\n    return x - x.mean(0)\n")
    (folder / "sweep.py").write_text("ROWS = 2560\n")
    blocks = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (root / "README.md").read_text(), re.S))
    code = "from analysis.latents import centre\nfrom sweep import ROWS\n" + blocks["my_vae.py"]
    made = "torch.randn({rows}, 4, generator=random)"
    pattern = re.escape(f"x = {made.format(rows=2560)} @ ") + "(.*)"
    code, changes = re.subn(pattern, rf"x = centre({made.format(rows='ROWS')} @ \1)", code)
    assert changes == 1
    path = folder.joinpath(*trainer.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    (folder / "own.yaml").write_text(textwrap.dedent(f"""
        trainable: {trainer}:MyVAE
        search: {{beta: {{loguniform: [0.01, 100]}}, lr: {{loguniform: [1.0e-3, 1.0e-2]}}}}
        fixed: {{epochs: 3}}
        objectives: [val/elbo]
        scheduler: {{kind: fifo}}
        resources: {{workers: 2}}
        budget: {{trials: 3}}
        wandb: {{mode: disabled}}
        seed: 1
    """))
    return folder


def call(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def where_buttress_is(environment: Path, folder: Path) -> Path:
    code = "import buttress; print(buttress.__file__)"
    return Path(call([environment / "bin/python", "-P", "-c", code], folder).strip())


def test_a_users_module_is_found_before_an_installed_one_of_its_name(tmp_path: Path) -> None:
    """`utils`, `test` (Python's own), `analysis`: what a trainer imports is what lies beside it."""
    installed, users = tmp_path / "installed", tmp_path / "users"
    for folder, whose in ((installed, "installed"), (users, "the user's")):
        (folder / "utils").mkdir(parents=True)
        (folder / "utils" / "__init__.py").write_text(f"WHOSE = {whose!r}\n")
    trainer = """from buttress import Section
from utils import WHOSE

class MyVAE:
    name, Config, metrics = WHOSE, Section, {}
    def schedule(self, config): ...
    def train(self, config, world, report, resume): ...
"""
    for name in ("test.py", "random.py"):
        (users / name).write_text(trainer)
    (users / "rules.yaml").write_text("rules: {}\n")
    code = """if True:
        import random, sys
        from buttress.training import registry
        before = list(sys.path)
        print(registry.load("test:MyVAE").name, registry.rules_file("test:MyVAE"), sys.path[:-1] == before)
        try:
            registry.load("random:MyVAE")
        except ValueError as error:
            print(error)"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=users, env=clean() | {"PYTHONPATH": f"{ROOT}:{installed}"},
        capture_output=True, text=True, check=False,
    )
    loaded, refused = done.stdout.splitlines()
    assert loaded == f"the user's {users / 'rules.yaml'} True", done.stderr
    assert f"is not the {users / 'random.py'} that is meant" in refused and "another name" in refused


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(("editable", "trainer"), [(False, "train"), (True, "models.buttress_vae")])
def test_a_sweep_runs_among_a_users_own_modules(
    editable: bool, trainer: str, root: Path, checkout: Path, wheel: Path, bare_environment: Path, tmp_path: Path
) -> None:
    install(bare_environment, *(["--editable", checkout] if editable else [wheel]))
    folder = users_folder(tmp_path, root, trainer)
    found = where_buttress_is(bare_environment, folder)
    assert found.is_relative_to(checkout if editable else bare_environment)
    # `-m` puts the user's folder first on the path, where a bare import of ours would find the user's module.
    buttress = [bare_environment / "bin/python", "-m", "buttress"] if editable else [bare_environment / "bin/buttress"]

    assert "for 2 worker" in call([*buttress, "plan", "own.yaml"], folder)
    ended = json.loads(call([*buttress, "run", "own.yaml", "--quiet", "--json"], folder).splitlines()[-1])
    assert sum(ended["counts"].values()) == 3 and "failed" not in ended["counts"]
    assert ended["best"] is not None
    rows = json.loads(call([*buttress, "table", ended["sweep"], "--json"], folder).splitlines()[-1])
    assert len(rows) == 3
    call([*buttress, "why", ended["sweep"], "1"], folder)
    call([*buttress, "export", ended["sweep"], "-o", "best.yaml"], folder)
    trained = json.loads(call([*buttress, "train", "best.yaml", "--json"], folder).splitlines()[-1])
    assert trained["metrics"]["val/elbo"] == ended["best"]["objective"]["val/elbo"]


# Types


def test_mypy_checks_the_folders_at_the_top_once_and_by_their_import_names() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert not set(settings["files"]) & {*LINKED, "."}
    own = [one for one in settings["overrides"] if one["module"] == "buttress.*"]
    assert [one["ignore_missing_imports"] for one in own] == [False]  # an import of ours that is not found is an error


@pytest.mark.long
def test_mypy_resolves_every_module_of_an_installed_wheel(
    wheel: Path, bare_environment: Path, tmp_path: Path
) -> None:
    install(bare_environment, wheel)
    names = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_the_wheel(wheel) if name.endswith(".py") and "__main__" not in name
    )
    lines = [f"import {name}" for name in names]
    lines += ["reveal_type(buttress.run)", 'reveal_type(buttress.load("x").best)', "buttress.rnu"]
    (tmp_path / "user.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", bare_environment / "bin/python", "--config-file="]
    done = subprocess.run(
        [*command, "--disallow-any-unimported", "user.py"], cwd=tmp_path, env=clean(),
        capture_output=True, text=True, check=False,
    )
    told = done.stdout.splitlines()
    errors = [line for line in told if ": error: " in line]
    assert len(errors) == 1 and 'Module has no attribute "rnu"' in errors[0], done.stdout + done.stderr
    run, best = (line.partition("Revealed type is ")[2] for line in told if "Revealed type is" in line)
    assert run.endswith("buttress.analysis.results.Sweep\"") and "Trial | None" in best
