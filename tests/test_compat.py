"""Contracts with Ray, Optuna, W&B and torch: each private or undocumented name that `buttress.compat` uses.

After an upgrade `make check-next` (or this file) says in one sentence per broken name what is gone and what used it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("ray", "optuna", "wandb", "torch")
#: Where the engine, the families and the benchmarks are; some tests look inside these libraries on purpose.
SEARCHED = ("buttress", "trainables", "analysis", "benchmarks", "examples")


def private(module: str, name: str, used_by: str) -> Any:
    """The private object `module.name`; fails with a sentence where it is gone."""
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{module.partition('.')[0]} no longer has {module}.{name} (used by {used_by}): {error}")
    return found


def takes(function: Callable[..., Any], parameters: list[str], used_by: str) -> None:
    """The function has at least these parameters, by these names."""
    there = [*inspect.signature(function).parameters]
    missing = [name for name in parameters if name not in there]
    assert not missing, f"{function.__qualname__} takes {there}, without {missing} (used by {used_by})"


# --- Ray Train ----------------------------------------------------------------------------------------------------

TRAINER = ("ray.train.v2.api.data_parallel_trainer", "compat.ray_train.ControllableTrainer")


def test_ray_train_fits_by_the_method_that_keeps_the_controller() -> None:
    module, used_by = TRAINER
    trainer = private(module, "DataParallelTrainer", used_by)
    method = private(module, "DataParallelTrainer._initialize_and_run_controller", used_by)
    kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
    assert kinds[1:] == [inspect.Parameter.VAR_KEYWORD], f"{method.__qualname__} does not take keywords only"
    called = inspect.getsource(trainer.fit)
    assert "self._initialize_and_run_controller(" in called, f"{trainer.fit.__qualname__} runs its controller otherwise"
    assert "train_run_context=self.train_run_context" in called, "the controller is not given `train_run_context`"
    run = private("ray.train.v2._internal.execution.context", "TrainRunContext", used_by)
    assert "run_id" in run.__dataclass_fields__, f"a TrainRunContext has no `run_id` (used by {used_by})"


def test_the_controller_of_ray_train_runs_and_has_a_result() -> None:
    _, used_by = TRAINER
    controller = private("ray.train.v2._internal.execution.controller", "TrainController", used_by)
    for name in ("run", "get_result"):
        assert hasattr(controller, name), f"Ray Train's TrainController has no {name}() (used by {used_by})"
    propagated = private("ray.train.v2._internal.constants", "get_env_vars_to_propagate", used_by)
    assert isinstance(propagated(), dict)


def test_what_ray_hands_on_to_workers_holds_no_credentials() -> None:
    """Runtime environments are written into log files."""
    from buttress.compat.ray import CREDENTIALS, credentials_kept_in_the_driver

    train = private("ray.train.v2._internal.constants", "ENV_VARS_TO_PROPAGATE", "compat.ray_train")
    assert not [name for name in train if CREDENTIALS.search(name)], "Ray Train hands on credentials now"
    cache = importlib.import_module("ray.tune.execution.class_cache")
    before = private("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", "compat.ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
        patch.setattr("ray.remote", lambda **options: lambda cls: options["runtime_env"]["env_vars"])
        stock = cache._ActorClassCache().get(int)
        with credentials_kept_in_the_driver():
            ours = cache._ActorClassCache().get(int)
    assert "AWS_SECRET_ACCESS_KEY" in stock, "Tune no longer hands on AWS keys: credentials_kept_in_the_driver can go"
    assert set(stock) - set(ours) == {"AWS_SECRET_ACCESS_KEY"}
    assert cache.ENV_VARS_TO_PROPAGATE is before


def test_ray_listens_on_loopback_by_a_constant_of_its_own() -> None:
    from buttress.compat.ray import bound_to_loopback

    constant = private("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", "compat.ray.bound_to_loopback")
    source = inspect.getsource(private("ray._private.services", "get_node_ip_address", "compat.ray"))
    assert "ENABLE_RAY_CLUSTER" in source and "get_localhost_ip" in source, "Ray chooses its address otherwise now"
    constants = importlib.import_module("ray._private.ray_constants")
    with bound_to_loopback():
        assert constants.ENABLE_RAY_CLUSTER is False
    assert constants.ENABLE_RAY_CLUSTER is constant


def test_ray_train_meets_at_the_address_that_rank_0_is_asked_for() -> None:
    used_by = "compat.ray_train.SlotTorchBackend"
    private("ray.train.torch.config", "get_address_and_port", used_by)
    source = inspect.getsource(private("ray.train.torch.config", "_TorchBackend.on_start", used_by))
    assert "worker_group.execute_single(\n                0, get_address_and_port\n" in source
    store = inspect.getsource(private("torch.distributed.rendezvous", "_torchelastic_use_agent_store", used_by))
    assert "TORCHELASTIC_USE_AGENT_STORE" in store


def test_the_callbacks_that_a_slot_does_without_are_there() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from buttress.compat.ray_train import UNUSED_CALLBACKS, ControllableTrainer

    module, used_by = TRAINER
    private(module, "DataParallelTrainer._create_default_callbacks", used_by)

    def names(kind: type[TorchTrainer]) -> set[str]:
        made: Any = kind(lambda: None, scaling_config=ScalingConfig(num_workers=1))
        return {type(callback).__name__ for callback in made._create_default_callbacks()}

    stock, ours = names(TorchTrainer), names(ControllableTrainer)
    assert stock >= UNUSED_CALLBACKS, f"Ray Train no longer makes {UNUSED_CALLBACKS - stock} (left out by {used_by})"
    assert stock - ours == UNUSED_CALLBACKS


# --- Ray's core, autoscaler, Tune -----------------------------------------------------------------------------------

ENVIRONMENT_READERS = (
    "ray.tune.constants", "ray.air.constants", "ray.train.constants", "ray.train.v2._internal.constants",
    "ray._private.ray_constants", "ray._private.accelerators.accelerator", "ray._common.usage.usage_constants",
)  # fmt: skip


def test_ray_reads_every_environment_variable_that_a_sweep_sets() -> None:
    from buttress.compat.ray import RAY_ENVIRONMENT

    sources = ""
    for name in ENVIRONMENT_READERS:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"Ray has no module {name} any more"
        sources += Path(spec.origin).read_text()
    unread = [name for name in RAY_ENVIRONMENT if f'"{name}"' not in sources]
    assert not unread, f"Ray no longer reads {unread} (compat.ray.RAY_ENVIRONMENT)"


def test_ray_lists_draining_nodes_and_free_resources_by_node(ray_cluster: Any) -> None:
    from buttress.compat.ray import draining_nodes, free_resources_per_node

    for name in ("get_draining_nodes", "available_resources_per_node"):
        private("ray._private.state", f"state.{name}", "compat.ray, for the worker pool")
    (node,) = [node["NodeID"] for node in ray_cluster.nodes() if node["Alive"]]
    assert draining_nodes() == frozenset()
    free = free_resources_per_node()
    assert set(free) == {node} and 0 <= free[node].get("CPU", 0.0) <= 2.0


def test_the_autoscaling_coordinator_has_the_name_and_the_call() -> None:
    from buttress.compat.ray import AUTOSCALING_COORDINATOR, train_requester_id

    module, used_by = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator", "compat.ray"
    made = inspect.getsource(private(module, "get_or_create_autoscaling_coordinator", used_by))
    for key in ("name", "namespace"):
        assert f'{key}="{AUTOSCALING_COORDINATOR}"' in made, f"the coordinator's {key} has changed ({used_by})"
    takes(private(module, "_AutoscalingCoordinatorActor", used_by).cancel_request, ["requester_id"], used_by)
    policy = "ray.train.v2._internal.execution.scaling_policy.scaling_policy"
    source = inspect.getsource(private(policy, "ScalingPolicy.after_controller_start", used_by))
    expected = train_requester_id("{train_run_context.run_id}")
    assert f'f"{expected}"' in source, f"Ray Train asks for nodes under another name than {expected!r} ({used_by})"


def test_tune_starts_its_actors_by_the_method_that_a_benchmark_counts() -> None:
    from buttress.compat.ray import tune_actor_manager

    private("ray.air.execution._internal.actor_manager", "RayActorManager.add_actor", "benchmarks/slots.py")
    assert callable(tune_actor_manager().add_actor)


def test_tune_calls_scheduler_and_stopper_with_the_arguments_of_ours() -> None:
    from ray.tune import Stopper
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    for owner, name, parameters in (
        (TrialScheduler, "on_trial_result", ["tune_controller", "trial", "result"]),
        (TrialScheduler, "on_trial_complete", ["tune_controller", "trial", "result"]),
        (TrialScheduler, "on_trial_remove", ["tune_controller", "trial"]),
        (Stopper, "__call__", ["trial_id", "result"]),
        (Searcher, "suggest", ["trial_id"]),
        (Searcher, "on_trial_complete", ["trial_id", "result", "error"]),
    ):
        takes(getattr(owner, name), parameters, "buttress.tune and execution.tune_adapter")
    assert Searcher.FINISHED == "FINISHED"


CLUSTER_FILE: dict[str, Any] = {
    "cluster_name": "small",
    "max_workers": 1,
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]},
    "auth": {"ssh_user": "ubuntu"},
}


def test_ray_up_has_a_schema_and_knows_providers() -> None:
    from buttress.compat.ray import launcher_schema, node_providers

    for name in ("cluster_name", "provider", "available_node_types", "file_mounts"):
        assert name in launcher_schema()["properties"], f"ray-schema.json no longer has {name} (cluster check)"
    assert {"local", "aws", "gcp"} <= {*node_providers()}, "Ray's table of providers has changed (cluster check)"


def test_ray_up_prepares_and_validates_cluster_files() -> None:
    from buttress.compat.ray import prepared_cluster_file

    (node,) = prepared_cluster_file(CLUSTER_FILE)["available_node_types"].values()
    assert node["max_workers"] == 1, "Ray no longer fills in the node types of a cluster file (cluster check)"
    for broken, words in (
        ({"idle_timeout_minutes": "many"}, "many"),
        ({"provider": {"type": "local"}}, "head_ip"),
        ({"provider": {"type": "clouds"}}, "clouds"),
    ):
        with pytest.raises(ValueError, match=words):
            prepared_cluster_file({**CLUSTER_FILE, **broken})


def test_ray_start_has_a_parser_and_options() -> None:
    from buttress.compat.ray import parse_start, start_options

    assert {"head", "address", "num-cpus", "object-store-memory", "autoscaling-config"} <= start_options()
    assert parse_start(["--head", "--num-cpus=0"]) == {"head": True, "num_cpus": "0"}
    with pytest.raises(ValueError, match="--dashboard-host"):
        parse_start(["--dashbord-host=127.0.0.1"])


def test_ray_reads_a_raycluster_as_its_autoscaler_does() -> None:
    from buttress.compat.ray import check_kuberay_manifest

    limits = {"cpu": "2", "memory": "4Gi"}
    container = {"name": "ray", "image": "rayproject/ray:2.60.0", "resources": {"limits": limits}}
    group: dict[str, Any] = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    workers = {**group, "groupName": "cpu", "replicas": 0, "minReplicas": 0, "maxReplicas": 3}
    manifest = {"metadata": {"name": "small"}, "spec": {"headGroupSpec": group, "workerGroupSpecs": [workers]}}
    check_kuberay_manifest(manifest)
    workers["rayStartParams"] = {"num-gpus": "two"}
    with pytest.raises(ValueError, match="two"):
        check_kuberay_manifest(manifest)


def test_botocore_lists_what_launches_an_instance() -> None:
    from buttress.compat.botocore import ec2_launch_parameters

    pytest.importorskip("botocore")
    assert {"InstanceType", "ImageId", "InstanceMarketOptions"} <= ec2_launch_parameters()


# --- Optuna ---------------------------------------------------------------------------------------------------------


def study() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


def test_optuna_suggests_from_a_distribution_by_public_methods() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from buttress.compat.optuna import suggest

    space = {
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "share": FloatDistribution(0.0, 1.0, step=0.25),
        "layers": IntDistribution(2, 8, step=2),
        "width": IntDistribution(16, 1024, log=True),
        "norm": CategoricalDistribution((None, "batch", True)),
    }
    ours, optunas = study(), study()
    for _ in range(20):
        trial = ours.ask()
        drawn = {name: suggest(trial, name, distribution) for name, distribution in space.items()}
        assert drawn == optunas.ask(fixed_distributions=space).params
    assert ours.trials[-1].distributions == space


def test_optuna_takes_back_a_running_trial_with_its_samplers_notes() -> None:
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState

    from buttress.compat.optuna import add_running_trial, running_trial, sampler_notes

    made = study()
    add_running_trial(made, {"x": 0.5}, {"x": FloatDistribution(0.0, 1.0)}, {"note": [1, 2]})
    assert sampler_notes(made, 0) == {"note": [1, 2]}, "Optuna keeps no system attributes (compat.optuna)"
    trial = running_trial(made, 0)
    trial.report(0.1, 1)
    trial.set_user_attr("outcome", "completed")
    trial.set_constraint("collapse", -0.5)
    made.tell(0, 0.7)
    (frozen,) = made.trials
    assert (frozen.state, frozen.value, frozen.params) == (TrialState.COMPLETE, 0.7, {"x": 0.5})
    assert frozen.intermediate_values == {1: 0.1} and dict(frozen.constraints) == {"collapse": -0.5}
    assert frozen.user_attrs == {"outcome": "completed"}


def test_optuna_notes_at_a_draw_what_counts_the_running_trial() -> None:
    import optuna

    from buttress.compat.optuna import sampler_notes, suggest

    made = study()
    made.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=1, multivariate=True, group=True)
    for value in (0.1, 0.2, 0.3):
        trial = made.ask()
        suggest(trial, "x", optuna.distributions.FloatDistribution(0.0, 1.0))
        made.tell(trial, value)
    suggest(made.ask(), "x", optuna.distributions.FloatDistribution(0.0, 1.0))
    assert isinstance(sampler_notes(made, 3), dict)


# --- W&B ------------------------------------------------------------------------------------------------------------


def test_wandb_has_the_experimental_settings() -> None:
    import wandb

    from buttress.compat.wandb import EXPERIMENTAL_SETTINGS

    missing = [name for name in EXPERIMENTAL_SETTINGS if name not in wandb.Settings.model_fields]
    assert not missing, f"wandb.Settings has no {missing} any more (compat.wandb.EXPERIMENTAL_SETTINGS)"
    made = wandb.Settings(**EXPERIMENTAL_SETTINGS)
    assert {name: getattr(made, name) for name in EXPERIMENTAL_SETTINGS} == EXPERIMENTAL_SETTINGS


def test_wandb_replaces_the_exit_hooks_and_they_are_put_back(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from buttress.compat.wandb import disable_error_reporting, preserved_exit_hooks\n"
        "disable_error_reporting()\n"
        "import wandb\n"
        "before = sys.exit, sys.excepthook\n"
        "given = dict(mode='offline', reinit='create_new', settings=wandb.Settings(silent=True, console='off'))\n"
        f"given['dir'] = {str(tmp_path)!r}\n"
        "with preserved_exit_hooks():\n"
        "    run = wandb.init(**given)\n"
        "    print((sys.exit, sys.excepthook) != before)\n"
        "print((sys.exit, sys.excepthook) == before)\n"
        "run.finish()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    replaced, restored = done.stdout.split()[-2:]
    assert replaced == "True", "wandb.init no longer replaces sys.exit: compat.wandb.preserved_exit_hooks can go"
    assert restored == "True"


# --- torch ----------------------------------------------------------------------------------------------------------


def test_torch_counts_in_place_changes() -> None:
    import torch

    from buttress.compat.torch import inplace_version

    tensor = torch.zeros(3)
    before, view = inplace_version(tensor), tensor[:1]
    view.add_(1)
    assert inplace_version(tensor) == before + 1 and inplace_version(tensor.clone()) != inplace_version(tensor)
    with torch.inference_mode():
        assert inplace_version(torch.zeros(1)) == -1


def test_torchs_fused_kernel_is_adam() -> None:
    import torch

    from buttress.compat.torch import fused_adam_step

    private("torch", "_fused_adam_", "compat.torch.fused_adam_step")
    torch.manual_seed(0)
    parameter = torch.randn(5, dtype=torch.float64)
    ours, reference = parameter.clone(), torch.nn.Parameter(parameter.clone())
    optimizer = torch.optim.Adam([reference], lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    first, second, step = torch.zeros_like(ours), torch.zeros_like(ours), torch.tensor(0.0)
    for _ in range(3):
        gradient = torch.randn(5, dtype=torch.float64)
        reference.grad = gradient.clone()
        optimizer.step()
        step += 1
        fused_adam_step([ours], [gradient], [first], [second], [step], lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    torch.testing.assert_close(ours, reference.detach(), rtol=1e-6, atol=1e-9)


def test_torch_leaves_a_marked_step_unwrapped() -> None:
    import torch

    from buttress.compat.torch import without_profiling

    class Marked(torch.optim.SGD):
        @without_profiling
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            """Nothing."""

    class Plain(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            """Nothing."""

    marked, plain = Marked.step, Plain.step
    for kind in (Marked, Plain):
        kind([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert Marked.step is marked, "torch wraps an optimizer's step although it is `hooked` (compat.torch)"
    assert Plain.step is not plain, "torch wraps no step any more: compat.torch.without_profiling can go"


# --- nothing creeps back --------------------------------------------------------------------------------------------


def sources() -> Iterator[Path]:
    for folder in SEARCHED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "compat" not in path.relative_to(ROOT).parts:
                yield path


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of imports from private modules of the libraries, and of private attributes of what they give."""
    known: set[str] = set()  # names that stand for a library, its modules, or what was imported from it

    def is_private(dotted: str) -> bool:
        return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LIBRARIES:
                    known.add(alias.asname or alias.name.partition(".")[0])
                    if is_private(alias.name):
                        yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in LIBRARIES:
            for alias in node.names:
                known.add(alias.asname or alias.name)
                if is_private(f"{node.module}.{alias.name}"):
                    yield node.lineno, f"{node.module}.{alias.name}"
    own = {"_asdict", "_replace", "_fields"}  # of named tuples
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            root: ast.expr = node.value
            while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and root.id in known:
                yield node.lineno, ast.unparse(node)


#: Attributes that are these libraries' own on any object, however it was come by.
TELLTALE = {"_version", "_trial_id", "_suggest", "_create_default_callbacks", "_initialize_and_run_controller"}


def test_nothing_but_compat_uses_private_names_of_the_libraries() -> None:
    found = []
    for path in sources():
        tree = ast.parse(path.read_text())
        uses = [*private_uses(tree)]
        uses += [
            (node.lineno, ast.unparse(node)) for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in TELLTALE and ast.unparse(node.value) != "self"
        ]  # fmt: skip
        found += [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in uses]
    assert not found, "private names belong into buttress/compat, with a contract test:\n" + "\n".join(found)


def test_the_search_for_private_names_finds_them() -> None:
    code = (
        "import torch, ray.train._internal\nfrom ray._private import state\nfrom optuna.trial import Trial\n"
        "torch._foreach_mul_([], 2)\nTrial(0)._suggest\nself._own\ntorch.nn.Module\n"
    )
    texts = {text for _, text in private_uses(ast.parse(code))}
    assert texts == {"ray.train._internal", "ray._private.state", "torch._foreach_mul_", "Trial(0)._suggest"}
