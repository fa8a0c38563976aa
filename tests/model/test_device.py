"""A training step on a device that cannot be looked at.

On PyTorch's meta device tensors have a shape and no values: whatever would make a CPU wait for a GPU (to look at a
value, to select by a mask) fails there, as does arithmetic between devices. What is moved within a step is noticed too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model.gmvae._module import GMVAEModule
from scdeepclust.model.idc._module import IDCModule
from scdeepclust.model.mfcvae._module import MFCVAEModule
from scdeepclust.model.scdeepcluster._model import SCDeepClusterModule
from scdeepclust.model.somvae._model import SOMVAEModule
from scdeepclust.nn import Counts
from scdeepclust.train import ClusteringPlan

N_OBS, N, G, K, NNZ = 100, 16, 30, 3, 60


class NoTransfers(TorchDispatchMode):
    """Fails where a tensor is moved between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            devices = {t.device.type for t in (*args, result) if isinstance(t, torch.Tensor)}
            assert len(devices) == 1, f"{function} between {devices} within a step"
        return result


def gmvae(**kwargs):
    module = GMVAEModule(G, n_clusters=K, n_latent=4, n_hidden=8, n_batch=2, **kwargs)
    module.mixture.set_initialised(True)
    module.start_labels = torch.zeros(N_OBS, dtype=torch.long)
    return module


def mfcvae(**kwargs):
    module = MFCVAEModule(G, n_clusters=K, n_facet_clusters=(2,), n_latent=4, n_hidden=8, n_batch=2, **kwargs)
    for mixture in module.mixtures:
        mixture.set_initialised(True)
    module.guides = {j: torch.zeros(N_OBS, dtype=torch.long) for j in (0, 1)}
    return module


def scdeepcluster(**kwargs):
    module = SCDeepClusterModule(G, n_clusters=K, n_latent=4, n_hidden=8, n_batch=2, **kwargs)
    module.targets, module.start_labels = torch.zeros(N_OBS, K), torch.zeros(N_OBS, dtype=torch.long)
    return module


def somvae(**kwargs):
    module = SOMVAEModule(G, n_clusters=K, grid=(2, 3), n_latent=4, n_hidden=8, n_batch=2, **kwargs)
    module.arrivals, module.start_nodes = torch.zeros(N_OBS, 6), torch.zeros(N_OBS, dtype=torch.long)
    return module


def idc(**kwargs):
    return IDCModule(G, n_clusters=K, n_latent=4, n_hidden=8, n_batch=2, **kwargs)


STEPS = {
    "GMVAE pretrain": (gmvae, "pretrain"),
    "GMVAE vae": (gmvae, "vae"),
    "GMVAE mixture": (gmvae, "mixture"),
    "MFCVAE pretrain": (mfcvae, "pretrain"),
    "MFCVAE facet1": (mfcvae, "facet1"),
    "MFCVAE mixture": (mfcvae, "mixture"),
    "SCDeepCluster pretrain": (scdeepcluster, "pretrain"),
    "SCDeepCluster cluster": (scdeepcluster, "cluster"),
    "SOMVAE map": (somvae, "map"),
    "IDC pretrain": (idc, "pretrain"),
    "IDC gates": (idc, "gates"),
    "IDC cluster": (idc, "cluster"),
}


def one_hot(labels, n):
    """Without the check of the labels, which there is none of on a GPU."""
    return (labels.unsqueeze(-1) == torch.arange(n, device=labels.device)).long()


def step(make: Callable, phase: str, **kwargs) -> None:
    """Forward, loss and backward pass; a second time without any transfer."""
    module = make(**kwargs).train().to("meta")
    index, column = torch.zeros(NNZ, dtype=torch.long), torch.zeros(N, 1, dtype=torch.long)
    counts = Counts(index, index, torch.ones(NNZ), N, G).to("meta")
    batch = {"X": counts, "batch": column.to("meta"), CELL_INDEX: column.squeeze(1).to("meta")}
    plan = ClusteringPlan(module, phase=phase)
    plan.to("meta")
    plan.training_step(batch, 0).backward()
    with NoTransfers():
        loss = plan.training_step(batch, 1)
        loss.backward()
        plan.on_before_optimizer_step(None)
    assert loss.device.type == "meta"
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(g.device.type == "meta" for g in gradients)


OTHERS = ("zinb", "poisson", "normal", "beta_binomial")


@pytest.mark.parametrize(
    ("name", "likelihood"), [*((name, "nb") for name in STEPS), *(("GMVAE vae", other) for other in OTHERS)]
)
def test_a_step_waits_for_nothing_and_moves_nothing(name, likelihood, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    make, phase = STEPS[name]
    step(make, phase, gene_likelihood=likelihood)


@pytest.mark.parametrize(
    "wait", [lambda x: bool(x.sum() > 0), lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu()], ids=range(4)
)
def test_what_waits_is_noticed(monkeypatch, wait):
    """The test above can fail."""
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    network_input = GMVAEModule.network_input

    def waiting(self, *args):
        u = network_input(self, *args)
        wait(u)
        return u

    monkeypatch.setattr(GMVAEModule, "network_input", waiting)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        step(gmvae, "vae")
