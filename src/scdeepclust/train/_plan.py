"""The training plan: one phase of one fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import pandas as pd
import torch
from scvi.module.base import BaseModuleClass, LossOutput
from scvi.train import TrainingPlan
from torch import Tensor, nn

# Steps after which a GPU is asked whether all losses were finite; to ask it at each would make it wait.
LOOK_EVERY = 50


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the model keeps its last good state."""


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
        Name of the phase; it reaches :meth:`module.loss` as ``phase``.
    last
        Whether this is the last phase. Metrics of earlier phases get the name of the phase as prefix.
    lr
        Learning rate of Adam.
    weight_decay
        L2 penalty of Adam.
    eps
        Denominator constant of Adam.
    kl_warmup
        Share of the steps of the phase over which the KL weight rises from 0 to ``max_kl_weight``.
    max_kl_weight
        KL weight after the warm-up.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`; those it does not know are passed to ``module.loss``.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        phase: str = "training",
        last: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        kl_warmup: float = 0.0,
        max_kl_weight: float = 1.0,
        **kwargs,
    ):
        self._prefix = "" if last else f"{phase}_"
        self.phase = phase
        self.kl_warmup = kl_warmup
        super().__init__(
            module,
            optimizer="Custom",
            optimizer_creator=self._fused_adam,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            max_kl_weight=max_kl_weight,
            **kwargs,
        )
        self.interrupted = False
        self.history: dict[str, pd.DataFrame] = {}
        self._values: dict[str, list[float]] = defaultdict(list)
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "validation": {}}
        self._good_state: dict[str, Tensor] = {}
        self._first_bad_loss: Tensor | None = None  # on a GPU; 0 as long as all are finite

    @property
    def kl_weight(self) -> float:
        """Weight of the KL terms at the current step."""
        n_steps = self.kl_warmup * self._n_steps() if self._trainer is not None else 0
        if self.global_step >= n_steps:
            return self.max_kl_weight
        return self.max_kl_weight * self.global_step / n_steps

    def _n_steps(self) -> int:
        return self.trainer.max_epochs * self.trainer.num_training_batches

    def _fused_adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = list(parameters)
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        # with mixed precision Lightning refuses to clip gradients for an optimiser that may unscale them by itself
        fused = fused and self.trainer.precision == "32-true"
        return torch.optim.Adam(parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused)

    def on_train_batch_start(self, batch, batch_idx):
        """Leave the epoch when the user interrupted (Lightning itself looks only between epochs)."""
        return -1 if self.interrupted else None

    def _loss(self, batch: dict[str, Tensor], mode: str) -> Tensor:
        kwargs = self.loss_kwargs | {"phase": self.phase, "kl_weight": self.kl_weight}
        _, _, output = self.forward(batch, loss_kwargs={k: v for k, v in kwargs.items() if k in self._loss_args})
        self._accumulate(output, mode)
        return output.loss

    def training_step(self, batch, batch_idx):
        """Loss of one minibatch; raises :class:`NonFiniteLossError` when it is not finite."""
        loss = self._loss(batch, "train")
        if not self._looks_later:
            if not torch.isfinite(loss):
                self._restore_and_raise(loss)
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
            self._restore_and_raise(first)

    def on_before_optimizer_step(self, optimizer):
        """Take no step along a loss that is not finite: until somebody looks, the culprit is to be told from others."""
        if self._first_bad_loss is not None:
            for gradient in (p.grad for p in self.module.parameters() if p.grad is not None):
                gradient.masked_fill_(self._first_bad_loss != 0, 0)

    def validation_step(self, batch, batch_idx):
        """Loss of one held-out minibatch."""
        self._loss(batch, "validation")

    def _accumulate(self, output: LossOutput, mode: str) -> None:
        """Add the terms of one minibatch to sums over cells, so that logging costs nothing per step."""
        n = output.n_obs_minibatch
        terms = {
            "loss": output.loss * n,
            "reconstruction_loss": output.reconstruction_loss_sum,
            "kl_local": output.kl_local_sum,
            "n": torch.full((), float(n), device=output.loss.device),
        }
        terms |= {name: value * n for name, value in output.extra_metrics.items()}
        sums = self._sums[mode]
        for name, value in terms.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=output.loss.device).detach()
            sums[name] = sums[name] + value if name in sums else value

    def _log_epoch(self, mode: str) -> None:
        sums, self._sums[mode] = self._sums[mode], {}
        if not sums:
            return
        names = list(sums)
        totals = torch.stack([sums[name] for name in names])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        means = dict(zip(names, (totals / totals[names.index("n")]).tolist(), strict=True))
        loss = means.pop("loss")
        del means["n"]
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
        named = {f"{self._prefix}{name}": value for name, value in metrics.items()}
        for name, value in named.items():
            self._values[name].append(value)
            frame = pd.DataFrame({name: self._values[name]})
            frame.index.name = "epoch"
            self.history[name] = frame
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

    def on_train_epoch_end(self):
        """Log the epoch and remember the weights as the last good ones."""
        self._look_back()
        self._log_epoch("train")
        if torch.stack([torch.isfinite(p).all() for p in self.module.parameters()]).all():
            self._good_state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def on_validation_epoch_end(self):
        """Log the epoch on held-out cells."""
        self._log_epoch("validation")

    def on_fit_start(self):
        """Remember the weights before the first step."""
        self._good_state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _restore_and_raise(self, loss: Tensor) -> None:
        culprit = next((n for n, p in self.module.named_parameters() if not torch.isfinite(p).all()), None)
        where = f"the first parameter that is not finite is {culprit!r}" if culprit else "all parameters are finite"
        epoch = self.current_epoch
        self.module.load_state_dict(self._good_state)
        raise NonFiniteLossError(
            f"The loss became {loss.item()} in phase {self.phase!r}, epoch {epoch}; {where}. The model was put back "
            "to its state at the end of the epoch before. Check the counts for extreme cells, or train with a "
            "smaller learning rate: train(plan_kwargs={'lr': 1e-4})."
        )
