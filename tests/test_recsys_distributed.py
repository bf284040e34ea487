"""Distributed training: two processes that share every step, against one process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import SMALL, noise, toy_catalog, toy_config, write_tables

from experiments.config import load_config
from experiments.pipelines.train import train
from experiments.tracking.mlflow import NullTracker
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import current_bundle
from recsys.config import TrainingConfig
from recsys.towers import distributed
from recsys.towers.training import fit_towers

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
CASES = {
    "full softmax": ({}, 0),
    "ids hidden, negatives drawn, contents unused": (
        {"id_dropout": 0.3, "content": False, "nested": (4,), "calendar": True},
        12,
    ),
}
BATCH = 60


def fitted(case, batch_events):
    """FittedTowers of a case. The best epoch is the second of four."""
    config, negatives = CASES[case]
    figures = iter([0.1, 0.3, 0.2, 0.1])
    return fit_towers(
        toy_catalog(30),
        replace(log := noise(), types=log.items % 3, n_types=3),
        SMALL.model_copy(update=config),
        TrainingConfig(epochs=9, patience=2, batch_events=batch_events, learning_rate=0.01, negatives=negatives),
        seed=3,
        validate=lambda _: {"ndcg_at_10": next(figures)},
    )


def work():
    """Run by rank 0: fits every case and writes weights and losses."""
    folder = Path(sys.argv[1])
    for number, case in enumerate(CASES):
        towers = fitted(case, BATCH)
        torch.save(towers.model.state_dict(), folder / f"{number}.pt")
        (folder / f"{number}.json").write_text(json.dumps([towers.epochs, [line["loss"] for line in towers.history]]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folder of the weights and losses that two processes wrote."""
    folder = tmp_path_factory.mktemp("shared")
    completed = subprocess.run(
        [*TORCHRUN, __file__, str(folder)], capture_output=True, text=True, timeout=200, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_equal_one_with_doubled_batches(shared, number):
    single = fitted(list(CASES)[number], 2 * BATCH)
    weights = torch.load(shared / f"{number}.pt", weights_only=True)
    epochs, losses = json.loads((shared / f"{number}.json").read_text())
    assert epochs == single.epochs == 2
    np.testing.assert_allclose(losses, [line["loss"] for line in single.history], rtol=1e-5)
    d = SMALL.dimension
    for name, tensor in single.model.state_dict().items():
        if name.endswith("qkv.bias"):  # the bias of the keys has no effect: its gradient is rounding error
            weights[name][d : 2 * d] = tensor[d : 2 * d]
        # rounding errors dominate gradients near zero, and the rotation of directions of similar variance; a step is
        # fifty times as long as the tolerance
        np.testing.assert_allclose(weights[name], tensor, rtol=1e-3, atol=2e-4, err_msg=name)


def test_a_run_of_two_processes_equals_a_run_of_one_and_writes_one_bundle(tmp_path):
    write_tables(tmp_path / "data")
    command = [*TORCHRUN, "--no-python", str(Path(sys.executable).with_name("recsys")), "train"]
    config = toy_config(tmp_path, training={"epochs": 2, "batch_events": 128, "learning_rate": 0.01})
    completed = subprocess.run(
        [*command, str(config), "--no-track", "--json"], capture_output=True, text=True, timeout=200, check=False
    )
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)  # rank 0 alone prints
    assert completed.stderr.count("refitting the selected model on all events") == 1
    (folder,) = [path for path in (tmp_path / "bundles").iterdir() if path.name != "current" and path.is_dir()]
    assert str(folder) == report["bundle"]
    assert current_bundle(tmp_path / "bundles") == folder

    config = toy_config(tmp_path, training={"epochs": 2, "batch_events": 256, "learning_rate": 0.01})
    single = load_bundle(train(load_config(config, {}), NullTracker(), Quiet())[0]).recommender
    np.testing.assert_allclose(load_bundle(folder).recommender.vectors, single.vectors, atol=1e-4)


class Quiet:
    """A reporter without output."""

    def say(self, text):
        pass

    def steps(self, what, total):
        return lambda done: None


def test_a_single_process_shares_nothing():
    state = torch.random.get_rng_state()
    with distributed.process_rng(7):
        torch.rand(3)
    assert not torch.equal(state, torch.random.get_rng_state())  # one process: the generator is the common one
    module = torch.nn.Linear(1, 1)
    assert distributed.data_parallel(module) is module
    assert distributed.broadcast_value("own") == "own"
    assert (distributed.rank(), distributed.size()) == (0, 1)


if __name__ == "__main__":
    distributed.run_distributed(work)
