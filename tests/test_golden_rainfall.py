"""The rainfall family against what the original gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from golden import Golden, agree, gradient_norms, key_list
from torch import nn

from buttress.trainables.rainfall.model import Grids, Pool, RainVae
from buttress.trainables.rainfall.original import ARCHITECTURES, from_original, model_of, to_original
from buttress.training.losses import gaussian_kl, reparameterize

SIZES = ("d_x", "d_y", "d_z", "base_filters")


class Network:
    """The network that a file was made with, float64, with the file's weights, and its inputs."""

    def __init__(self, file: Golden, letter: str) -> None:
        made = file.config
        self.file, self.model = file, model_of(letter, **{name: made[name] for name in SIZES})
        grids = Grids(made["in_channels_X"], tuple(made["predictor_grid"]), (made["H"], made["W"]), 2)
        self.built = RainVae(self.model, grids).double()
        exact_pooling(self.built)
        self.load()
        self.x, self.y, self.statics = (file.inputs(name) for name in ("x", "y", "statics"))
        self.step = slice(None, None, made["subsample"])

    def load(self) -> None:
        """The file's weights and norms' statistics; the norms' counts of batches are not in it."""
        keys = self.built.load_state_dict(from_original(self.file.weights(), self.model), strict=False)
        assert not keys.unexpected_keys and all(key.endswith("num_batches_tracked") for key in keys.missing_keys)

    def __call__(self) -> dict[str, torch.Tensor]:
        condition = self.built.condition(self.x)
        code = self.built.posterior(condition, self.y, self.statics)
        y_hat = self.built.decode(reparameterize(code.mu, code.logvar, self.file.inputs("noise")), condition)
        return {"mu": code.mu, "logvar": code.logvar, "h_x": condition.code, "whole": y_hat,
                "y_hat": y_hat[..., self.step, self.step]}  # fmt: skip

    def golden(self, prefix: str, *names: str) -> dict[str, torch.Tensor]:
        return {name: self.file.out(prefix + name) for name in names}


def exact_pooling(network: nn.Module) -> None:
    """Pooling matrices that were made in float32 and widened, computed anew in float64."""
    for one in network.modules():
        if isinstance(one, Pool):
            one.rows, one.columns = ((m > 0).double() / (m > 0).sum(1, keepdim=True) for m in (one.rows, one.columns))


def set_dropout(network: nn.Module, p: float) -> nn.Module:
    """Every dropout that is on at `p`, in train mode."""
    for one in network.modules():
        if isinstance(one, nn.Dropout):
            one.p = p * math.ceil(one.p)
    return network.train()


@pytest.mark.parametrize("letter", ARCHITECTURES)
def test_networks_are_the_originals(letter: str, shared: Path) -> None:
    file = Golden(shared, f"rainfall_model_{letter}")
    net = Network(file, letter)
    with torch.no_grad():
        net.built.eval()
        out = net()
        agree(out, net.golden("", "mu", "logvar", "h_x", "y_hat"), 1e-9)
        whole = out["whole"]
        spread = torch.stack([whole.mean(), whole.std(), (whole == 0).double().mean()])
        agree({"y_hat_mean_std_zeros": spread}, net.golden("", "y_hat_mean_std_zeros"), 1e-9)
        condition = net.built.condition(net.x)
        prior = net.built.decode(file.inputs("prior"), condition)[..., net.step, net.step]
        agree({"y_hat": prior}, net.golden("prior/", "y_hat"), 1e-9)
        set_dropout(net.built, 1.0)
        agree(net(), net.golden("train_dropout1/", "mu", "y_hat"), 1e-9)
        # the file's statistics `after` a forward are those after this one
        after = {key.removeprefix("out/train/after/") for key in file.arrays.files if "/after/" in key}
        agree(to_original(net.built.state_dict(), net.model), net.golden("train/after/", *after), 1e-9)
    net.load()
    set_dropout(net.built, 0.0)
    out = net()
    agree(out, net.golden("train/", "mu", "y_hat"), 1e-9)
    probe = out["whole"].abs().mean() + 0.01 * gaussian_kl(out["mu"], out["logvar"]).sum(1).mean()
    probe.backward()
    agree({"probe_loss": probe}, net.golden("train/", "probe_loss"), 1e-9)
    golden = dict(zip(file.config["grad_keys"], file.out("train/grad_norms").tolist(), strict=True))
    ours = gradient_norms(net.built, lambda one: to_original(one, net.model))
    # a bias before a norm has none but rounding's
    agree(ours, {key: value for key, value in golden.items() if value > 1e-12}, 1e-9)


@pytest.mark.parametrize("letter", ARCHITECTURES)
def test_every_key_and_shape_is_the_originals(letter: str, shared: Path) -> None:
    listed = key_list(shared, f"rainfall_{letter}")
    model = model_of(letter, **{name: listed["config"][name] for name in SIZES})
    with torch.device("meta"):
        built = RainVae(model)
    assert sum(one.numel() for one in built.parameters()) == listed["parameters"]
    theirs = to_original(built.state_dict(), model)
    assert {key: list(value.shape) for key, value in theirs.items()} == listed["keys"]
    assert [key for key, value in theirs.items() if value.dtype == torch.int64] == listed["integer_keys"]
    back = from_original(theirs, model)
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in built.state_dict().items()}
