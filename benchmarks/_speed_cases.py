"""What `speed.py` compares: for each section, pairs of functions that do the same work."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from scdeepclust.model.scdeepcluster._dec import column_sums
from scdeepclust.nn import FastLinear, GaussianMixture, counts_from_dense, nb_log_likelihood, zinb_log_likelihood
from scdeepclust.nn._linear import onednn_is_faster

N_CELLS, N_GENES, N_HIDDEN, N_LATENT = 128, 4000, 128, 10
MIB = 2**20


@dataclass
class Case:
    """Two functions of no argument that do the same work, and by how much the second must win.

    A function that returns a float has timed itself, in milliseconds; any other is timed from outside.
    """

    name: str
    theirs: Callable[[], object]
    ours: Callable[[], object]
    gate: float  # of the lower quartile of theirs / ours, or of the upper quartile of ours - theirs in ms
    target: float | None = None
    is_difference: bool = False
    n_repeats: int = 1  # units of work in one call
    n_rounds: int | None = None  # where a call takes seconds
    checks: dict[str, Callable[[], tuple[float, float]]] = field(default_factory=dict)  # name -> found, bound


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def minibatch() -> tuple[Tensor, list[Tensor]]:
    """Counts of 128 cells and 4000 genes, nine in ten of them zero, and what a decoder would say of them."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Tensor:
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    scores, log_theta = 1.5 * normal(N_CELLS, N_GENES), normal(N_GENES)
    log_library = 6.42 + 0.3 * normal(N_CELLS)
    mean, theta = (torch.softmax(scores, -1) * log_library.exp()[:, None]).numpy(), log_theta.exp().numpy()
    x = torch.tensor(rng.poisson(rng.gamma(theta, mean / theta)), dtype=torch.float32)
    return x, [scores, log_library, log_theta, normal(N_CELLS, N_GENES), normal(N_CELLS, N_GENES)]


def kernels() -> Iterator[Case]:
    """Count likelihoods from decoder scores, forward and backward, 128 cells, 4000 genes: `scvi.distributions` against
    `scdeepclust.nn`, which gets the non-zeros as triplets, as the loader hands them over."""
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    x, (scores, log_library, by_gene, by_entry, dropout) = minibatch()
    counts = counts_from_dense(x)
    share_of_zeros = f"{1 - len(counts.value) / x.numel():.0%} zeros"

    def theirs(scores: Tensor, log_theta: Tensor, dropout: Tensor | None = None) -> Tensor:
        mu = log_library.to(scores.dtype).exp()[:, None] * torch.softmax(scores, -1)
        if dropout is None:
            return NegativeBinomial(mu=mu, theta=log_theta.exp()).log_prob(x.to(mu.dtype)).sum(-1)
        zinb = ZeroInflatedNegativeBinomial(mu=mu, theta=log_theta.exp(), zi_logits=dropout)
        return zinb.log_prob(x.to(mu.dtype)).sum(-1)

    def ours(scores: Tensor, log_theta: Tensor, dropout: Tensor | None = None) -> Tensor:
        if dropout is None:
            return nb_log_likelihood(counts, scores, log_library, log_theta)
        return zinb_log_likelihood(counts, scores, log_library, log_theta, dropout)

    for name, arguments, gate, target in (
        ("NB", (scores, by_gene), 5, 7),
        ("ZINB", (scores, by_gene, dropout), 3.5, 5),
        ("ZINB, dispersion per gene and cell", (scores, by_entry, dropout), 3.5, 5),
    ):
        leaves = [argument.clone().requires_grad_() for argument in arguments]
        yield Case(
            f"{name}, {share_of_zeros}",
            times(5, both_passes(theirs, leaves)),
            times(5, both_passes(ours, leaves)),
            gate,
            target,
            n_repeats=5,
            checks={"difference from float64": lambda leaves=leaves: (difference(theirs, ours, leaves), 1e-5)},
        )


def both_passes(function: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(*leaves).sum(), leaves)


def times(n: int, function: Callable[[], object]) -> Callable[[], None]:
    """Do it n times: a round of a few milliseconds would be at the mercy of whatever else the core does."""

    def repeated() -> None:
        for _ in range(n):
            function()

    return repeated


def difference(theirs: Callable[..., Tensor], ours: Callable[..., Tensor], leaves: list[Tensor]) -> float:
    """Largest difference of values and gradients, relative to the largest entry of each.

    Theirs adds 1e-8 inside its logarithms, hence a bound above that of the tests.
    """
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = [theirs(*wide), *both_passes(theirs, wide)()]
    found = [ours(*leaves), *both_passes(ours, leaves)()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def decoder() -> Iterator[Case]:
    """Ten Monte-Carlo samples through the last decoder layer and the NB likelihood, forward and backward: a loop over
    scVI's pieces against one call."""
    from scvi.distributions import NegativeBinomial

    x, (_, log_library, log_theta, *_) = minibatch()
    counts = counts_from_dense(x)
    h = torch.randn(10, N_CELLS, N_HIDDEN)
    plain, fast = nn.Linear(N_HIDDEN, N_GENES), FastLinear(N_HIDDEN, N_GENES)
    fast.load_state_dict(plain.state_dict())
    log_theta.requires_grad_()

    def theirs() -> Tensor:
        total = torch.zeros(())
        for sample in h:
            mu = log_library.exp()[:, None] * torch.softmax(plain(sample), -1)
            total = total + NegativeBinomial(mu=mu, theta=log_theta.exp()).log_prob(x).sum(-1).mean()
        return backward(total / len(h), plain, log_theta)

    def ours() -> Tensor:
        return backward(nb_log_likelihood(counts, fast(h), log_library, log_theta).mean(), fast, log_theta)

    checks = {
        "peak MiB": lambda: (peak_mib(ours), 128),
        "difference": lambda: (float((ours() - theirs()).abs().max() / theirs().abs().max()), 1e-4),
    }
    yield Case("10 samples", theirs, ours, 3, 3.5, checks=checks)


def backward(loss: Tensor, layer: nn.Module, *others: Tensor) -> Tensor:
    """Gradient of the weight of a layer; those of its bias and of the others are computed too."""
    return torch.autograd.grad(loss, [*layer.parameters(), *others])[0]


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors made inside that were alive at the same time, at the worst moment."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {storage_of(a) for a in args if isinstance(a, Tensor)}
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and storage_of(tensor) not in given:
                storage = tensor.untyped_storage()
                self.alive[storage_of(tensor)] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_mib(function: Callable[[], object]) -> float:
    with PeakMemory() as memory:
        function()
    return memory.peak / MIB


# ---- clusters --------------------------------------------------------------------------------------------------------


def mixture() -> Iterator[Case]:
    """Posterior over 50 components for 1280 points in 80 dimensions, forward and backward: `torch.distributions.Normal`
    broadcast over points and components against matrix products."""
    generator = torch.Generator().manual_seed(0)
    for shared in (False, True):
        prior = GaussianMixture(50, 80, shared_variance=shared)
        with torch.no_grad():
            prior.means.normal_(generator=generator)
            prior.log_var.normal_(0, 0.3, generator=generator)
        z = torch.randn(1280, 80, generator=generator).requires_grad_()
        leaves = [z, *prior.parameters()]

        def theirs(prior=prior, z=z, leaves=leaves) -> tuple[Tensor, ...]:
            normal = torch.distributions.Normal(prior.means, torch.exp(0.5 * prior.log_var))
            log_joint = normal.log_prob(z[:, None]).sum(-1) + prior.log_weights
            return torch.autograd.grad(torch.log_softmax(log_joint, -1)[:, 0].sum(), leaves)

        def ours(prior=prior, z=z, leaves=leaves) -> tuple[Tensor, ...]:
            return torch.autograd.grad(torch.log_softmax(prior.log_joint(z), -1)[:, 0].sum(), leaves)

        checks = {
            "peak MiB": lambda ours=ours: (peak_mib(ours), 4),
            "relative error at offset 100": lambda prior=prior, z=z: (error_at_offset(prior, z), 1e-5),
        }
        name = "one variance for all" if shared else "a variance for each component"
        yield Case(f"mixture, {name}", times(5, theirs), times(5, ours), 8, 12, n_repeats=5, checks=checks)


@torch.no_grad()
def error_at_offset(prior: GaussianMixture, z: Tensor) -> float:
    prior.means += 100
    z = z + 100
    normal = torch.distributions.Normal(prior.means.double(), torch.exp(0.5 * prior.log_var.double()))
    exact = normal.log_prob(z.double()[:, None]).sum(-1) + prior.log_weights.double()
    error = (prior.log_joint(z) - exact).abs() / exact.abs()
    prior.means -= 100
    return float(error.max())


def dec() -> Iterator[Case]:
    """Soft cluster sizes over all cells (50 clusters, 32 dimensions): the [cells, clusters, dimensions] form against
    streamed matrix products."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50_000, 32, generator=generator)
    centers = z[:50] + 0.1

    def theirs() -> Tensor:
        kernel = 1 / (1 + (z[:, None] - centers).square().sum(-1))
        return (kernel / kernel.sum(1, keepdim=True)).sum(0)

    def ours() -> Tensor:
        return column_sums(z, centers)

    many = z.repeat(4, 1)
    checks = {
        "difference": lambda: (float((ours() - theirs()).abs().max() / theirs().abs().max()), 1e-6),
        "MiB more for 200,000 cells": lambda: (peak_mib(lambda: column_sums(many, centers)) - peak_mib(ours), 0.1),
    }
    yield Case("soft cluster sizes, 50,000 cells", theirs, ours, 10, 20, checks=checks, n_rounds=11)


# ---- layers ----------------------------------------------------------------------------------------------------------


def linear() -> Iterator[Case]:
    """`torch.nn.Linear` against `FastLinear`, forward and backward. Where the other route is not taken, the two are the
    same code and the gate only says that nothing is lost."""
    gate, target = (1.3, 1.8) if onednn_is_faster() else (0.85, None)
    for n, n_in, n_out in ((128, N_GENES, N_HIDDEN), (128, N_HIDDEN, N_GENES), (1280, N_HIDDEN, N_GENES)):
        plain, fast = nn.Linear(n_in, n_out), FastLinear(n_in, n_out)
        x = torch.randn(n, n_in, requires_grad=True)
        upstream = torch.randn(n, n_out)

        def passes(layer: nn.Module, x=x, upstream=upstream) -> object:
            return torch.autograd.grad(layer(x), [x, *layer.parameters()], upstream)

        calls = [times(5, lambda layer=layer, passes=passes: passes(layer)) for layer in (plain, fast)]
        yield Case(f"linear layer, {n} x {n_in} to {n_out}", *calls, gate, target, n_repeats=5)


# ---- training --------------------------------------------------------------------------------------------------------


def simulated(n_cells: int, n_genes: int):
    """Counts with as many zeros as UMI data have, as CSR in X."""
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(n_cells, n_genes, n_clusters=10, seed=0)
    adata.layers.clear()
    return adata


def scvi_model(adata, likelihood: str):
    import scvi

    scvi.model.SCVI.setup_anndata(adata)
    return timed(scvi.model.SCVI(adata, gene_likelihood=likelihood))


def our_model(adata, likelihood: str):
    """The autoencoder phase of SCDeepCluster, with the layer sizes of SCVI's defaults."""
    from scdeepclust.model import SCDeepCluster
    from scdeepclust.train import Phase

    class Autoencoder(SCDeepCluster):
        def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size):
            return [Phase("pretrain", max_epochs)]

        def _end_training(self, train_indices):
            pass

    Autoencoder.setup_anndata(adata)
    sizes = {"n_layers": 1, "n_hidden": N_HIDDEN, "n_latent": N_LATENT}
    return timed(Autoencoder(adata, 10, gene_likelihood=likelihood, **sizes))


def timed(model):
    """The model, with a list `epoch_ms` that training fills: CPU time from the start to the end of each epoch."""
    model.epoch_ms = []

    class TimedPlan(model._training_plan_cls):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            self.started = time.process_time()

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            model.epoch_ms.append(1000 * (time.process_time() - self.started))

    model._training_plan_cls = TimedPlan
    return model


def epoch(model) -> float:
    model.train(max_epochs=1, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    return model.epoch_ms[-1]


def bare_steps(model, optimizer: torch.optim.Optimizer, loss_kwargs: dict, *, sparse: bool) -> Callable[[int], None]:
    """A function that makes n steps, from loading to the optimiser, with nothing around them."""
    model.module.train()
    passes = (
        model._make_data_loader(
            model.adata, indices=np.arange(model.adata.n_obs), batch_size=128, shuffle=True, load_sparse_tensor=sparse
        )
        for _ in itertools.count()
    )
    minibatches = itertools.chain.from_iterable(passes)

    def steps(n: int) -> None:
        for tensors in itertools.islice(minibatches, n):
            loss = model.module(tensors, loss_kwargs=loss_kwargs)[2].loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def their_steps(model) -> Callable[[int], None]:
    optimizer = torch.optim.Adam(model.module.parameters(), eps=0.01, weight_decay=1e-6)
    return bare_steps(model, optimizer, {"kl_weight": 1.0}, sparse=False)


def our_steps(model) -> Callable[[int], None]:
    model._begin_training()
    optimizer = torch.optim.Adam(model.module.parameters(), fused=True)
    return bare_steps(model, optimizer, {"phase": "pretrain"}, sparse=True)


def step() -> Iterator[Case]:
    """One training step with nothing around it, from the loader to the optimiser, 128 cells, 4000 genes, layers of 128
    units: SCVI against the autoencoder phase of SCDeepCluster, each with its own loader, module and Adam."""
    adata = simulated(5000, N_GENES)
    for likelihood, gate, target in (("nb", 2.5, 3.3), ("zinb", 2.5, 3.3)):
        theirs, ours = their_steps(scvi_model(adata, likelihood)), our_steps(our_model(adata, likelihood))
        yield Case(
            f"step, {likelihood}",
            lambda theirs=theirs: theirs(5),
            lambda ours=ours: ours(5),
            gate if onednn_is_faster() else 1.8,
            target,
            n_repeats=5,
        )


def epochs() -> Iterator[Case]:
    """One epoch inside `train()`, 20,000 cells, 4000 genes: SCVI against the autoencoder phase of SCDeepCluster with
    the same layer sizes."""
    adata = simulated(20_000, N_GENES)
    for likelihood, gate, target in (("nb", 3.0, 3.8), ("zinb", 2.3, 3.0)):
        theirs, ours = scvi_model(adata, likelihood), our_model(adata, likelihood)
        yield Case(
            f"epoch, {likelihood}",
            lambda theirs=theirs: epoch(theirs),
            lambda ours=ours: epoch(ours),
            gate,
            target,
            n_rounds=11,
        )


def overhead() -> Iterator[Case]:
    """What Lightning and the training plan add to a bare step, on a model so small (200 genes) that little else is
    there: steps alone against an epoch inside `train()`, CPU milliseconds a step."""
    adata = simulated(12_800, 200)
    model = our_model(adata, "nb")
    steps = our_steps(model)
    yield Case(
        "plan and logging, a step", lambda: steps(100), lambda: epoch(model), 1.5, 1, is_difference=True, n_repeats=100
    )


SECTIONS = {section.__name__: section for section in (kernels, decoder, mixture, dec, linear, step, epochs, overhead)}
