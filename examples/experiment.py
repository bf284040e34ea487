"""An experiment from Python: two variants with two seeds, the decision, and the difference in two files of outcomes.

`recsys experiment run FILE` and `recsys experiment compare A B` do the same on the command line.
"""

import tempfile
from pathlib import Path

import polars as pl
import yaml
from train_and_search import configuration, write_tables

from experiments.notebook import compare, frame, run


def main() -> None:
    """Compare retrieval with and without the reranker, and print the decision and the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder / "data")
        file = folder / "experiment.yaml"
        variants = {"retrieval": {"model": "two towers"}, "popular": {"model": "popular"}}
        content = {"name": "example", "config": configuration(folder).name, "seeds": [0, 1], "variants": variants}
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        result = run(file, out=folder / "out", track=False)
        for decision in result.decisions:
            print(f"{decision['variant']}: {decision['decision']}, {decision['reason']}")
        rows = frame(result).filter(pl.col("segment") == "all")
        print(rows.select("placement", "metric", "variant", "mean", "change_low", "change_high"))
        again = run(file, out=folder / "out", track=False)  # nothing is computed again
        assert again.rows == result.rows
        first, *_ = sorted((folder / "out").glob("*.parquet"))
        same = frame(compare(first, first))
        assert same.get_column("ndcg_at_10_change_mean").to_list() == [0.0] * len(same)


if __name__ == "__main__":
    main()
