"""What we lean on in scvi-tools. When one of these fails on a new version, the package needs a look there."""

from __future__ import annotations

from inspect import signature

import numpy as np
import torch
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import DataSplitter
from scvi.model.base import ArchesMixin, BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin
from scvi.module.base import BaseModuleClass, LossOutput
from scvi.nn import FCLayers
from scvi.train import Trainer, TrainingPlan, TrainRunner


def has(function, *names):
    missing = [name for name in names if name not in signature(function).parameters]
    assert not missing, f"{function.__qualname__} lacks {missing}"


def test_signatures_we_call_or_override():
    has(
        UnsupervisedTrainingMixin.train,
        *("max_epochs", "accelerator", "devices", "batch_size", "early_stopping", "datasplitter_kwargs", "plan_kwargs"),
    )
    has(DataSplitter.__init__, "adata_manager", "external_indexing", "load_sparse_tensor")
    has(TrainingPlan.__init__, "module", "optimizer", "optimizer_creator", "lr", "eps", "weight_decay", "max_kl_weight")
    has(TrainRunner.__init__, "model", "training_plan", "data_splitter", "max_epochs")
    has(Trainer.__init__, "simple_progress_bar", "logger", "early_stopping_monitor", "check_val_every_n_epoch")
    has(BaseModelClass.__init__, "adata", "registry")
    has(BaseModelClass.load, "dir_path", "adata")
    has(BaseModelClass._make_data_loader, "adata", "indices", "batch_size", "data_loader_kwargs")
    has(BaseModelClass._validate_anndata, "adata", "copy_if_view")
    has(AnnDataManager.create_torch_dataset, "indices", "data_and_attributes", "load_sparse_tensor")
    has(AnnTorchDataset.__init__, "adata_manager", "getitem_tensors", "load_sparse_tensor")
    has(ArchesMixin.load_query_data, "adata", "reference_model", "unfrozen")
    has(RNASeqMixin.get_normalized_expression, "transform_batch", "library_size", "n_samples")
    has(BaseModuleClass.forward, "tensors", "loss_kwargs", "compute_loss")
    has(LossOutput.__init__, "loss", "reconstruction_loss", "kl_local", "extra_metrics", "n_obs_minibatch")


def test_fclayers_put_covariates_last_in_the_order_given():
    layers = FCLayers(2, 1, n_cat_list=[2, 3], n_cont=1, n_layers=1, use_batch_norm=False, use_activation=False,
                      dropout_rate=0, bias=False)  # fmt: skip
    (weight,) = layers.parameters()
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 2.0, 10.0, 100.0, 200.0, 1000.0, 2000.0, 3000.0]]))
    x = torch.tensor([[1.0, 1.0]])
    y = layers(x, torch.tensor([[1]]), torch.tensor([[2]]), cont=torch.tensor([[1.0]]))
    assert y.item() == 1 + 2 + 10 + 200 + 3000


def test_fclayers_freeze_all_but_the_last_columns_for_a_query():
    # without ReLU: one draw of the weights in twenty leaves all three units at zero, and no gradient at all
    layers = FCLayers(2, 3, n_cat_list=[2], n_layers=1, use_batch_norm=False, use_activation=False, dropout_rate=0.0)
    layers.set_online_update_hooks()
    layers(torch.ones(4, 2), torch.tensor([[0], [1], [0], [1]])).sum().backward()
    gradient = layers.fc_layers[0][0].weight.grad
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2:] != 0).all()


def test_loss_output_keeps_sums_over_cells():
    output = LossOutput(loss=torch.tensor(1.0), reconstruction_loss=torch.tensor([1.0, 2.0, 4.0]))
    assert output.reconstruction_loss_sum == 7
    assert output.n_obs_minibatch == 3
    assert np.isclose(float(output.kl_local_sum), 0)
