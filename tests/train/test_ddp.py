"""Two processes on one machine, each with half of every minibatch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys, numpy as np, scvi, scdeepclust as sdc
scvi.settings.seed = 0
adata = sdc.datasets.simulate_counts(300, 150, n_clusters=4, n_batches=2, depth=120, seed=1)
cls = getattr(sdc.model, sys.argv[1])
cls.setup_anndata(adata, batch_key="batch")
model = cls(adata, n_clusters=4)
model.train(pretrain_epochs=3, max_epochs=2, enable_progress_bar=False, accelerator="cpu", devices=2,
            strategy="ddp_find_unused_parameters_true", batch_size=32)
import torch.distributed as dist
rank = dist.get_rank()
state = model.module.state_dict()
parameters = np.concatenate([value.detach().numpy().ravel() for value in state.values()])
np.savez(f"{sys.argv[2]}/{rank}.npz", parameters=parameters, labels=model.predict(),
         start=model.initial_labels_, phases=len(model.phases_),
         history=sorted(model.history), loss=model.history["train_loss"].to_numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SCDeepCluster", "IDC"])
def test_two_processes_end_with_one_model(tmp_path, name):
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), name, str(tmp_path)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (np.load(tmp_path / f"{rank}.npz", allow_pickle=True) for rank in (0, 1))
    np.testing.assert_array_equal(first["parameters"], second["parameters"])
    np.testing.assert_array_equal(first["labels"], second["labels"])
    np.testing.assert_array_equal(first["start"], second["start"])
    assert first["phases"] == {"SCDeepCluster": 2, "IDC": 3}[name]
    own = {"SCDeepCluster": "cluster_kl_train", "IDC": "global_accuracy_train"}[name]
    assert {"pretrain_train_loss", "train_loss", own} <= set(first["history"].tolist())
    np.testing.assert_allclose(first["loss"].astype(float), second["loss"].astype(float))
