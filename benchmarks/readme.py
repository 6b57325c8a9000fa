"""Write the figures of the README from the recorded benchmarks: python -m benchmarks.readme [--check]."""

import argparse
import re
import sys

import pandas as pd

from simpool_lite.files import repository_root, write_atomically

RECORDS = repository_root() / "data" / "benchmarks"
README = repository_root() / "README.md"
FORMULA = "the paper's formula"


def figures() -> dict[str, str]:
    """What stands in the README between ``<!-- name -->`` and ``<!-- end -->``, by name."""
    poolings, heads, networks, workers = (
        pd.read_parquet(RECORDS / f"{name}.parquet") for name in ("poolings", "heads", "networks", "grid_workers")
    )
    table = poolings[poolings["shape"] == "(64, 196, 384)"].set_index(["task", "pooling"]).sort_index()
    names = {"forward": "forward", "training step": "step"}
    made = {
        f"{short} {who}": f"{table.at[(task, pooling), 'ms']:.1f}"
        for task, short in names.items()
        for who, pooling in (("ours", "SimPool"), ("timm", "timm SimPool1d"), ("gap", "GAP"))
    }
    made["memory"] = f"{table.at[('training step', 'SimPool'), 'memory, times GAP']:.2f}"
    times = heads.set_index("pooling")["times GAP"]
    made |= {"head": f"{times['SimPool']:.1f}", "head formula": f"{times.loc[FORMULA]:.1f}"}
    network = networks.set_index(["backbone", "task", "pooling"])["times GAP"]
    made["resnet50"] = f"{network['resnet50', 'training step', 'simpool']:.2f}"
    ratio = workers.set_index("backbone")["workers, times threads"]
    made |= {f"workers {backbone}": f"{value:.2f}" for backbone, value in ratio.items()}
    families = pd.read_csv(RECORDS / "families.csv").outcome
    made |= {"families": f"{len(families)}", "families work": f"{(families == 'works').sum()}"}
    return made | {"soak": f"\n\n{reliability(pd.read_csv(RECORDS / 'soak.csv'))}\n\n"}


def reliability(soak: pd.DataFrame) -> str:
    """The table of `benchmarks.soak`, with its dates and machines."""
    lines = ["| what | seen | promised at most |", "| --- | --- | --- |"]
    lines += [f"| {row.what} | {row.figure:.3g} | {row.most:g} |" for row in soak.itertuples()]
    when, where = ", ".join(sorted(soak.date.unique())), "; ".join(soak.machine.unique())
    load = f"{soak.load.min():.1f} to {soak.load.max():.1f}"
    return "\n".join(lines) + f"\n\n{when}, {where}, while {load} other processes wanted each core."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a figure is not the recorded one"
    )
    options = parser.parse_args()
    text, made = README.read_text(encoding="utf-8"), figures()
    new = re.sub(r"<!-- ([^>]+) -->[^<]*<!-- end -->", lambda m: f"<!-- {m[1]} -->{made[m[1]]}<!-- end -->", text)
    if options.check:
        return int(new != text)
    with write_atomically(README) as temporary:
        temporary.write_text(new, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
