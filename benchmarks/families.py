"""Try SimPool in one small model of every family of timm, without memory or weights: python -m benchmarks.families.

Each model either makes logits and a map or is refused at construction. The table is data/benchmarks/families.csv.
"""

import argparse
import re
from pathlib import Path

import pandas as pd
import timm
import torch
from tqdm.auto import tqdm

from simpool_lite import create_model
from simpool_lite.files import repository_root, write_atomically

TABLE = repository_root() / "data" / "benchmarks" / "families.csv"
SMALL = "test_ femto atto zepto pico nano micro xxs xxtiny _xs tiny 050 _s0 _t0 _m0 _b0 _mini small".split()
CLASSES = 7


def smallest(module: str) -> str:
    """The model of a family with the smallest name: a word for small in it, few pixels, then low numbers."""

    def size(name: str) -> tuple:
        pixels = timm.get_pretrained_cfg(name).input_size[-1]
        word = next((rank for rank, word in enumerate(SMALL) if word in name), len(SMALL))
        return pixels > 256, word, [int(number) for number in re.findall(r"\d+", name)], name

    return min(timm.list_models(module=module), key=size)


def families() -> list[str]:
    """timm's own modules; importing simpool_lite adds two."""
    modules = sorted(timm.list_modules())
    return [m for m in modules if timm.model_entrypoint(smallest(m)).__module__.startswith("timm.")]


def try_model(name: str) -> tuple[str, str]:
    """What became of SimPool in a model: "works" with the shape of its map, "refused" with the reason, or "crashes"."""
    side = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"):
        try:
            model = create_model(name, "simpool", CLASSES)
        except ValueError as error:
            return ("refused" if name in str(error) else "crashes"), str(error)
        try:
            images = torch.empty(2, 3, side, side)
            logits, maps = model(images), model.attention(images)
            model.reset_classifier(0)
            features = model.eval()(images)
        except Exception as error:
            return "crashes", f"{type(error).__name__}: {error}"
    if logits.shape != (2, CLASSES) or features.ndim != 2 or model.image_channels != 3:
        return "crashes", f"logits {tuple(logits.shape)}, features {tuple(features.shape)}"
    return "works", " x ".join(map(str, maps.shape[2:]))


def sweep(modules: list[str]) -> pd.DataFrame:
    """One row per family: module, model, outcome, detail."""
    rows = []
    for module in tqdm(modules, "families of timm"):
        name = smallest(module)
        outcome, detail = try_model(name)
        rows.append({"family": module, "model": name, "outcome": outcome, "detail": detail.partition("\n")[0][:200]})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="modules of timm.list_modules() (all)")
    parser.add_argument("--out", type=Path, default=TABLE, help="table to write (%(default)s)")
    options = parser.parse_args()
    table = sweep(options.families or families())
    print(table.to_string(index=False))
    print(table.outcome.value_counts().to_string())
    if not options.families:
        with write_atomically(options.out) as temporary:
            table.assign(timm=timm.__version__).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
