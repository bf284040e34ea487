"""Train on a folder of your own tables, then search it by words and recommend to a user.

The folder holds items.csv and events.csv (docs/data.md has the columns). The script writes a small one: 60 books of
three kinds, and readers who stay with one kind. With your own folder, only the configuration remains.
"""

import csv
import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

from experiments.config import load_config
from experiments.pipelines.train import train
from experiments.tracking.mlflow import NullTracker
from experiments.tracking.progress import terminal
from features.content.parts import Content, Text
from features.instants import now_micros
from features.interactions import Ragged, UserStates
from recsys.bundle.io import load_bundle
from recsys.bundle.query import search_bundle

KINDS = {
    "space": ("A journey to a distant star", "The colony on the red planet", "Signals from another galaxy"),
    "cooking": ("Soups for cold evenings", "Bread from your own oven", "A kitchen garden and its recipes"),
    "history": ("The fall of an empire", "Ships that opened the seas", "Letters from a medieval court"),
}


def write_tables(folder: Path) -> None:
    """items.csv and events.csv: 60 books, 120 readers with 12 events each, most of one kind."""
    folder.mkdir()
    rng = random.Random(0)
    books = [
        (f"book-{kind}-{number}", f"{titles[number % 3]}, volume {number // 3 + 1}", kind)
        for kind, titles in KINDS.items()
        for number in range(20)
    ]
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", "categories"), *books])
    start = datetime(2025, 1, 1, tzinfo=UTC)
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "event", "timestamp"))
        for reader in range(120):
            favourite = rng.choice(list(KINDS))
            chosen = [book for book in books if book[2] == favourite or rng.random() < 0.1]
            when = start + timedelta(days=rng.uniform(0, 200))
            for item_id, _, _ in rng.sample(chosen, 12):
                when += timedelta(hours=rng.uniform(1, 48))
                writer.writerow((f"reader-{reader}", item_id, "read", when.isoformat()))


def configuration(folder: Path) -> Path:
    """A configuration file for the tables in folder/data; configs/folder.yaml has every key explained."""
    settings = {
        "name": "books",
        "data": {"source": "folder", "path": str(folder / "data"), "events": {"positive": {"read": None}}},
        "towers": {"dimension": 16, "layers": 1, "history": 20},
        "training": {"epochs": 5, "batch_events": 512, "learning_rate": 0.01},
        "reranker": {"candidates": 30, "trees": 10},
        "bundles": str(folder / "bundles"),
        "cache": str(folder / "cache"),
    }
    path = folder / "books.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def main() -> None:
    """Write tables, train, search, recommend."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder / "data")
        with terminal() as reporter:
            path, tables = train(load_config(configuration(folder)), NullTracker(), reporter)
        bundle = load_bundle(path)
        ours = next(row for row in tables[0].rows if row["name"] == tables[0].ours)
        print(f"NDCG@10 on the test window: {ours['ndcg_at_10']['mean']:.3f}")

        found = search_bundle(bundle, Content.of(Text("rockets and planets")), 3)
        print("search for 'rockets and planets':", [item["title"] for item in found.items])

        history = bundle.catalog.ids.rows(["book-cooking-1", "book-cooking-5"])
        zero, end = np.zeros(1, np.int64), np.array([len(history)])
        now = now_micros()
        user = UserStates(
            users=np.array([-1]),  # not a user of the training: two events are enough
            as_of=np.array([now]),
            items=Ragged(history, zero, end),
            times=np.array([now - 2, now - 1]),
            positive=np.ones(2, np.bool_),
            seen=np.ones(2, np.bool_),
        )
        rows = bundle.recommender.recommend(user, 3, exclude=user.seen_items()).rows[0]
        titles = bundle.catalog.frame.get_column("title")
        print("for a reader of two cookery books:", [titles[int(row)] for row in rows])


if __name__ == "__main__":
    main()
