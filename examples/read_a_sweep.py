"""Reads a sweep, running or ended, wherever it was run: its table, its best trial, and why others were stopped.

    python examples/read_a_sweep.py lithology        # a name under runs/, a folder, or a URL such as s3://bucket/...

Nothing of this needs Ray or torch.
"""

import sys

import buttress


def main(name: str) -> None:
    sweep = buttress.load(name)
    print(sweep, "\n")

    table = sweep.table()  # a DataFrame, the best trial first
    print(table.groupby("outcome")["seconds"].agg(["count", "sum"]).round(1), "\n")

    best = sweep.best
    if best is None:
        print("no trial is healthy\n")
    else:
        print(f"best: trial {best.id}, epoch {best.best_epoch}")
        for path, value in best.params.items():
            print(f"  {path} = {value}")
        history = best.history()  # one row a report
        objective = next(iter(sweep.objectives))
        print(history.dropna(subset=[objective])[["epoch", objective]].tail(3).to_string(index=False), "\n")

    collapsed = sweep.table(where="outcome=collapsed", sort="-margin")
    print(f"{len(collapsed)} collapsed")
    if len(collapsed):
        print(sweep.explain(collapsed["trial"].iloc[0]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
