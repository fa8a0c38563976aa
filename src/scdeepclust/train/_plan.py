"""The training plan: one phase of one fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from scvi.train import TrainingPlan
from torch import Tensor, nn

# Steps after which a GPU is asked whether all losses were finite; to ask it at each would make it wait.
LOOK_EVERY = 50

OptimizerCreator = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the model is as it was before the call."""


class ClusteringPlan(TrainingPlan):
    """Training plan shared by all models.

    Compared with :class:`scvi.train.TrainingPlan` it logs once an epoch instead of once a step (at these step times
    logging is a visible share of the training), reduces its metrics across processes outside of inference mode (which
    the parent class cannot), names every metric after its phase, ties the KL warm-up to the length of the phase and
    stops at the first loss that is not finite.

    Parameters
    ----------
    module
        The module to train.
    phase
        Name of the phase; it reaches ``module.loss`` as ``phase``.
    last
        Whether this is the last phase. Metrics of earlier phases get the name of the phase as prefix.
    optimizer
        ``"Adam"``, ``"AdamW"`` or ``"Custom"``.
    optimizer_creator
        Makes another optimiser of an iterable of parameters; ``lr``, ``weight_decay`` and ``eps`` are then its own.
    lr
        Learning rate.
    weight_decay
        L2 penalty.
    eps
        Denominator constant.
    kl_warmup
        Share of the steps of the phase over which the KL weight rises from ``min_kl_weight`` to ``max_kl_weight``.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of that rise in epochs or steps, instead of a share.
    min_kl_weight, max_kl_weight
        KL weight before and after the warm-up.
    reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_scheduler_metric, lr_min, compile, compile_kwargs
        As in :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        phase: str = "training",
        last: bool = True,
        optimizer: Literal["Adam", "AdamW", "Custom"] = "Adam",
        optimizer_creator: OptimizerCreator | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        kl_warmup: float = 0.0,
        n_epochs_kl_warmup: int | None = None,
        n_steps_kl_warmup: int | None = None,
        min_kl_weight: float = 0.0,
        max_kl_weight: float = 1.0,
        reduce_lr_on_plateau: bool = False,
        lr_factor: float = 0.6,
        lr_patience: int = 30,
        lr_threshold: float = 0.0,
        lr_scheduler_metric: str = "elbo_validation",
        lr_min: float = 0.0,
        compile: bool = False,
        compile_kwargs: dict | None = None,
    ):
        self.prefix = "" if last else f"{phase}_"
        self.phase = phase
        self.kl_warmup = kl_warmup
        creators = {"Adam": self._fused_adam, "AdamW": self._adamw, "Custom": None}
        super().__init__(
            module,
            optimizer="Custom",
            optimizer_creator=optimizer_creator or creators[optimizer],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            n_steps_kl_warmup=n_steps_kl_warmup,
            min_kl_weight=min_kl_weight,
            max_kl_weight=max_kl_weight,
            reduce_lr_on_plateau=reduce_lr_on_plateau,
            lr_factor=lr_factor,
            lr_patience=lr_patience,
            lr_threshold=lr_threshold,
            lr_scheduler_metric=lr_scheduler_metric,
            lr_min=lr_min,
            compile=compile,
            compile_kwargs=compile_kwargs,
        )
        self.interrupted = False
        self._values: dict[str, dict[int, float]] = defaultdict(dict)
        # over the cells of the epoch so far: names, sums of their values, number of cells
        self._names: dict[str, tuple[str, ...]] = {}
        self._sums: dict[str, Tensor | None] = {"train": None, "validation": None}
        self._n = {"train": 0, "validation": 0}
        self._first_bad_loss: Tensor | None = None  # on a GPU; 0 as long as all are finite

    @property
    def kl_weight(self) -> float:
        """Weight of the KL terms at the current step."""
        n_steps = self._n_warmup_steps() if self._trainer is not None else 0
        if self.global_step >= n_steps:
            return self.max_kl_weight
        return self.min_kl_weight + (self.max_kl_weight - self.min_kl_weight) * self.global_step / n_steps

    def _n_warmup_steps(self) -> float:
        n_batches = self.trainer.num_training_batches
        if self.n_epochs_kl_warmup is not None:
            return self.n_epochs_kl_warmup * n_batches
        if self.n_steps_kl_warmup is not None:
            return self.n_steps_kl_warmup
        return self.kl_warmup * (self.trainer.max_epochs * n_batches)

    def _fused_adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = list(parameters)
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        # with mixed precision Lightning refuses to clip gradients for an optimiser that may unscale them by itself
        fused = fused and self.trainer.precision == "32-true"
        return torch.optim.Adam(parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused)

    def _adamw(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

    def on_train_batch_start(self, batch, batch_idx):
        """Leave the epoch when the user interrupted (Lightning itself looks only between epochs)."""
        return -1 if self.interrupted else None

    def _loss(self, batch: dict[str, Tensor], mode: str) -> Tensor:
        kwargs = self.loss_kwargs | {"phase": self.phase, "kl_weight": self.kl_weight}
        inferred, _, output = self.forward(batch, loss_kwargs={k: v for k, v in kwargs.items() if k in self._loss_args})
        self._accumulate(output, mode)
        if self._is_scored:
            scored = {key: batch[key] for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)}
            self.prepare_scib_autotune({"z": inferred["z_mean"]} | scored, "training" if mode == "train" else mode)
        return output.loss

    def training_step(self, batch, batch_idx):
        """Loss of one minibatch; raises :class:`NonFiniteLossError` when it is not finite."""
        loss = self._loss(batch, "train")
        if not self._looks_later:
            if not torch.isfinite(loss):
                self._raise_not_finite(loss)
            return loss
        bad = torch.where(torch.isfinite(loss), 0, loss).detach()
        first = self._first_bad_loss
        self._first_bad_loss = bad if first is None else torch.where(first == 0, bad, first)
        if batch_idx % LOOK_EVERY == LOOK_EVERY - 1:
            self._look_back()
        return loss

    @property
    def _looks_later(self) -> bool:
        """Whether to look at a loss would wait for the device."""
        return self.device.type != "cpu"

    def _look_back(self) -> None:
        """Raise if a loss since the last look was not finite."""
        first, self._first_bad_loss = self._first_bad_loss, None
        if first is not None and bool(first != 0):
            self._raise_not_finite(first)

    def on_before_optimizer_step(self, optimizer):
        """Take no step along a loss that is not finite: until somebody looks, the culprit is to be told from others."""
        if self._first_bad_loss is None:
            return
        bad = self._first_bad_loss != 0
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # a fused step leaves itself out
            optimizer.found_inf = bad.float()
            return
        for gradient in (p.grad for p in self.module.parameters() if p.grad is not None):
            gradient.masked_fill_(bad, 0)

    def validation_step(self, batch, batch_idx):
        """Loss of one held-out minibatch."""
        self._loss(batch, "validation")

    def _accumulate(self, output: LossOutput, mode: str) -> None:
        """Add the terms of one minibatch to sums over cells, so that logging costs nothing per step."""
        n, extra = output.n_obs_minibatch, output.extra_metrics
        means, sums = [output.loss, *extra.values()], [output.reconstruction_loss_sum, output.kl_local_sum]
        # stacked: a GPU takes longer to be told of a sum than to do it
        stacked = [torch.stack([value.detach() for value in values]) for values in (means, sums)]
        values = torch.cat([stacked[0] * n, stacked[1]]).float()
        self._names[mode] = ("loss", *extra, "reconstruction_loss", "kl_local")
        self._n[mode] += n
        before = self._sums[mode]
        self._sums[mode] = values if before is None else before + values

    def _log_epoch(self, mode: str) -> None:
        sums, n = self._sums[mode], self._n[mode]
        self._sums[mode], self._n[mode] = None, 0
        if sums is None:
            return
        totals = torch.cat([sums, sums.new_tensor([n])])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        means = dict(zip(self._names[mode], (totals[:-1] / totals[-1]).tolist(), strict=True))
        loss = means.pop("loss")
        metrics = {f"{name}_{mode}": value for name, value in means.items()}
        metrics[f"elbo_{mode}"] = means["reconstruction_loss"] + means["kl_local"]
        metrics["train_loss" if mode == "train" else "validation_loss"] = loss
        if mode == "train":
            metrics |= {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], "kl_weight": float(self.kl_weight)}
        self.record(metrics)

    def record(self, metrics: dict[str, float]) -> None:
        """Note values of the current epoch in ``history`` and for every logger, under the prefix of the phase.

        Callbacks that monitor a value find it under one name in every phase.
        """
        named = {f"{self.prefix}{name}": value for name, value in metrics.items()}
        for name, value in named.items():
            self._values[name][self.current_epoch] = value
        for logger in self.trainer.loggers:
            logger.log_metrics(named | {"epoch": self.current_epoch}, step=self.global_step)
            logger.save()
        # Lightning takes a good part of a millisecond to take in a value, so it gets what may be asked for
        watched = {name: value for name, value in metrics.items() if self._is_watched or "validation" in name}
        # values are already reduced, so every process logs the same ones
        self.log_dict(watched, logger=False, on_step=False, on_epoch=True, sync_dist=False, batch_size=1)
        if "train_loss" in metrics and self.trainer.progress_bar_callback is not None:
            loss = metrics["train_loss"]
            self.log("loss", loss, prog_bar=True, logger=False, on_step=False, on_epoch=True, batch_size=1)

    @cached_property
    def _is_watched(self) -> bool:
        """Whether there are callbacks other than ours, which may monitor what is logged."""
        return any(not type(callback).__module__.startswith("scdeepclust.") for callback in self.trainer.callbacks)

    @cached_property
    def _is_scored(self) -> bool:
        """Whether a callback of ``scvi.autotune`` scores the embedding."""
        callbacks = () if self._trainer is None else self._trainer.callbacks
        return any("Scib" in type(callback).__name__ for callback in callbacks)

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Values of this phase, by epoch."""
        return {
            name: pd.DataFrame({name: list(values.values())}, index=pd.Index(list(values), name="epoch"))
            for name, values in self._values.items()
        }

    def epoch_state(self) -> dict[str, dict[int, float]]:
        """What has been noted up to the end of an epoch."""
        return dict(self._values)

    def load_epoch_state(self, state: dict[str, dict[int, float]]) -> None:
        """Go on from what had been noted."""
        self._values = defaultdict(dict, state)

    def on_train_epoch_start(self):
        """Score one epoch at a time."""
        self._training_epoch_outputs = self._validation_epoch_outputs = None

    def on_train_epoch_end(self):
        """Log the epoch."""
        self._look_back()
        self._log_epoch("train")

    def on_validation_epoch_end(self):
        """Log the epoch on held-out cells."""
        self._log_epoch("validation")

    def _raise_not_finite(self, loss: Tensor) -> None:
        culprit = next((n for n, p in self.module.named_parameters() if not torch.isfinite(p).all()), None)
        where = f"the first parameter that is not finite is {culprit!r}" if culprit else "all parameters are finite"
        raise NonFiniteLossError(
            f"The loss became {loss.item()} in phase {self.phase!r}, epoch {self.current_epoch}; {where}. The model is "
            "as it was before this call of `train`. Check the counts for extreme cells, or train with a smaller "
            "learning rate: train(plan_kwargs={'lr': 1e-4})."
        )
