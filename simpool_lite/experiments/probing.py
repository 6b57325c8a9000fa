"""Which pooling gets most out of a frozen backbone: attentive probing of one's own backbone and images."""

from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd

from ..checks import check_choice, check_int, check_number
from ..device import resolve_device
from ..models import load_model
from ..pooling import list_pools
from .budgets import SEARCH_SEED
from .grid import Grid, Spending, run
from .heads import published_features
from .search import at_the_edge, best_rates
from .store import Store
from .workers import launched

RATES = (1e-3, 3e-3, 1e-2)
BASELINE = "gap"  # with a linear classifier behind it: the linear probe


def probe_backbone(
    backbone: str,
    store: Store,
    *,
    pools: Sequence[str] = ("all",),
    dataset: str = "folder",
    data_root: str | None = None,
    target: str | None = None,
    data_options: dict | None = None,
    pretrained: bool | str = True,
    start: str | None = None,
    epochs: int = 6,
    batch_size: int = 128,
    seeds: int = 5,
    precision: float | None = None,
    budget: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Train poolings on the frozen features of a backbone, each at its best learning rate on validation images.

    The features are computed once and kept in the cache folder; heads share each pass over them. Rates are searched
    from three on, further up or down where the best is at an end. Every head is a record of its own: what is cut goes
    on after the last epoch that it finished. ``accelerate launch -m simpool_lite probe`` shares the heads out among
    its processes.

    Args:
        backbone: of timm.
        store: where the records go.
        pools: names of poolings, or "all": GAP, SimPool and the family "probing".
        dataset: of :func:`~simpool_lite.load_data`.
        data_root: folder of the images.
        target: of photo-digits.
        data_options: further arguments of :func:`~simpool_lite.load_data`, such as image_size of photographs.
        pretrained: True for timm's weights, "efficientnet-lite0" for those of its package (backbone
            tf_efficientnet_lite0); False probes the untrained network.
        start: file of a network that is probed in place of published weights, such as what the command ``dino`` writes.
        epochs: passes over the training features.
        batch_size: features per step.
        seeds: per pooling, at least.
        precision: as in :func:`~simpool_lite.experiments.grid.run`, against GAP.
        budget, workers: as in there.
        device: "auto" is cuda, then mps, then cpu.
        progress: show bars.

    Returns:
        One row per head, with the columns of :data:`simpool_lite.experiments.store.COLUMNS`.

    Raises:
        ValueError: a pooling that does not exist; no head could be trained, and why.
        FileNotFoundError: the images are not there.
    """
    known = [*list_pools(), *list_pools(family="probing")]
    names = [BASELINE, "simpool", *list_pools(family="probing")] if "all" in pools else [BASELINE, *pools]
    for name in names:
        check_choice("pools", name, known)
    check_int("seeds", seeds)
    if precision is not None:
        check_number("precision", precision, above_zero=True)
    Spending(budget), resolve_device(device)
    base = {"backbone": backbone, "dataset": dataset, "data_root": data_root, "target": target, "regime": "head"}
    base |= {"epochs": epochs, "batch_size": batch_size, "data_options": data_options or {}}
    trunk = {"backbone": backbone, "pool": BASELINE, "pretrained": pretrained, "epochs": 0}
    if start is not None:
        trunk |= {"pool": load_model(start).create_config["pool"], "pretrained": False, "start": str(start)}
    how = {"device": device, "workers": workers, "progress": progress}
    tried = {f"{name} {rate:g}": {"pool": name, "learning_rate": rate} for name in names for rate in RATES}
    search = Grid("probe-rates", base | {"measured_on": "val"}, tried, (SEARCH_SEED,), "probe", trunk=trunk)
    config = search.config(next(iter(tried)), SEARCH_SEED)
    together = launched(resolve_device(device).type)
    with together.main_process_first() if together else nullcontext():
        for split in ("train", "val", "test"):  # before there are workers, which would all compute them
            published_features(config, split, resolve_device(device), progress)
    while search is not None:
        found = run(search, store, **how)
        if (found.status == "failed").all():
            raise ValueError(f"every head failed, the first with: {found.reason.iloc[0]}")
        search = at_the_edge(search, found)
    rates = best_rates(found)[backbone]
    variants = {name: {"pool": name, "learning_rate": rates.get(name, RATES[0])} for name in dict.fromkeys(names)}
    grid = Grid("probe", base, variants, seeds, "probe", baseline=BASELINE, trunk=trunk)
    return run(grid, store, precision=precision, budget=budget, **how)
