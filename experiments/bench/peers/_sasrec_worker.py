"""RecTools' SASRec for `recsys bench train`, in its own environment; imports none of our packages.

`python -P _sasrec_worker.py FOLDER`, as `experiments/bench/train.py` calls it, reads settings.json and events.npz
(users, items; oldest first) in FOLDER. It writes the line {} when it is ready. For each line on its standard input it
makes one pass, writes FOLDER/vectors.npz, and then writes one line of JSON: seconds of the pass, and positions
predicted in it. vectors.npz has users (n_users, d) after all their events, and items (n_items, d); the rows of
unknown users and items are NaN.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


class OnRequest(Callback):  # type: ignore[misc]
    """Waits for a request before each pass, and writes the vectors after it."""

    def __init__(self, folder: Path, dataset: Any, shape: tuple[int, int], responses: TextIO) -> None:
        """shape: n_users, n_items."""
        self.folder, self.dataset, self.shape, self.responses = folder, dataset, shape, responses
        self.positions, self.started = 0, 0.0

    def __deepcopy__(self, _: object) -> "OnRequest":  # the model copies its trainer before it fits
        return self

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Report that the model is ready."""
        print("{}", file=self.responses, flush=True)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Wait for the next request."""
        if not sys.stdin.readline():
            raise SystemExit
        self.positions, self.started = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the positions that are not padding."""
        self.positions += int((batch["y"] != 0).sum())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Write the vectors, then the response."""
        seconds = time.perf_counter() - self.started
        preparator = module.data_preparator
        dataset = preparator.transform_dataset_u2i(self.dataset, self.dataset.user_id_map.external_ids)
        users, items = module._get_user_item_embeddings(preparator.get_dataloader_recommend(dataset, 256), "cpu")
        module.train()
        tables = [np.full((n, users.shape[1]), np.nan, np.float32) for n in self.shape]
        tables[0][dataset.user_id_map.external_ids] = users.numpy()
        tables[1][preparator.get_known_item_ids().astype(np.int64)] = items.numpy()[preparator.n_item_extra_tokens :]
        np.savez(self.folder / "vectors.npz", users=tables[0], items=tables[1])
        print(json.dumps({"seconds": seconds, "positions": self.positions}), file=self.responses, flush=True)


def main(folder: Path, responses: TextIO) -> None:
    """Train until standard input ends."""
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "events.npz", allow_pickle=False) as log:
        events = pd.DataFrame({Columns.User: log["users"], Columns.Item: log["items"]})
    events[Columns.Weight] = 1.0
    events[Columns.Datetime] = pd.to_datetime(np.arange(len(events)), unit="s")
    dataset = Dataset.construct(events)
    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"])
    callback = OnRequest(folder, dataset, settings["shape"], responses)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    model = SASRecModel(
        **settings["model"],
        loss="softmax",
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=lambda: Trainer(max_epochs=-1, accelerator="cpu", devices=1, callbacks=[callback], **quiet),
    )
    model.fit(dataset)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # libraries print, and standard output is for responses only
        assert sys.__stdout__ is not None
        main(Path(sys.argv[1]), sys.__stdout__)
