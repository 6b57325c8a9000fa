"""The workbook's experiments: which runs each notebook asks for, under each profile."""

from dataclasses import replace

from .grid import Grid
from .profiles import PROFILES

EPOCHS = {"convnet_micro": 10, "vit_micro": 30}  # enough for the curves to be flat at the end
OTHER_EPOCHS = 30

# The best of `learning_rate_search`, whose runs are recorded beside the results.
LEARNING_RATES = {
    ("convnet_micro", "gap"): 2e-3,
    ("convnet_micro", "simpool"): 2e-3,
    ("vit_micro", "cls"): 1e-3,
    ("vit_micro", "gap"): 5e-4,
    ("vit_micro", "simpool"): 1e-3,
}
OTHER_LEARNING_RATE = 1e-3
SEARCHED_RATES = {"convnet_micro": (1e-3, 2e-3, 4e-3, 8e-3), "vit_micro": (2.5e-4, 5e-4, 1e-3, 2e-3)}
SEARCH_EPOCHS = {"convnet_micro": 5, "vit_micro": 10}
SEARCH_SEED = 100  # never reported

SMOKE = {"epochs": 1}
SMOKE_DATA = {"num_images": 256}
SMOKE_SEEDS = 2


def base_config(
    backbone: str, profile: str = "laptop", dataset: str = "photo-digits", data_root: str | None = None
) -> dict:
    """The fields of a :class:`~simpool_lite.experiments.config.RunConfig` that the runs of a backbone share.

    "laptop" trains until the curves are flat; "smoke" executes every line in seconds, for tests; "gpu" is
    for larger backbones and data, with larger batches.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, got {profile!r}")
    config = {"backbone": backbone, "dataset": dataset, "data_root": data_root}
    config["epochs"] = EPOCHS.get(backbone, OTHER_EPOCHS)
    if dataset == "photo-digits":
        config["target"] = "digit"
    if profile == "smoke":
        config |= SMOKE
        if dataset == "photo-digits":
            config["data_options"] = SMOKE_DATA
    if profile == "gpu":
        config |= {"batch_size": 128}
    return config


def is_transformer(backbone: str) -> bool:
    """Whether a backbone has a class token that could be its pooling."""
    return backbone.startswith(("vit", "deit"))


def first_light(
    backbone: str,
    profile: str = "laptop",
    seeds: int = 5,
    dataset: str = "photo-digits",
    data_root: str | None = None,
) -> Grid:
    """Notebook 00: a backbone's own pooling (GAP; for a ViT also its class token) against SimPool."""
    pools = {"GAP": "gap", "SimPool": "simpool"}
    if is_transformer(backbone):
        pools = {"CLS": "cls"} | pools
    return Grid(
        experiment="first-light",
        base=base_config(backbone, profile, dataset, data_root),
        variants={
            name: {"pool": pool, "learning_rate": LEARNING_RATES.get((backbone, pool), OTHER_LEARNING_RATE)}
            for name, pool in pools.items()
        },
        seeds=min(seeds, SMOKE_SEEDS) if profile == "smoke" else seeds,
        profile=profile,
        keep_models=1,
    )


def more_images(profile: str = "laptop", seeds: int = 2) -> Grid:
    """Notebook 00: the transformer on four times the images, so that it cannot learn them by heart."""
    grid = first_light("vit_micro", profile, seeds)
    if profile == "smoke":
        longer = {"data_options": {"num_images": 4 * SMOKE_DATA["num_images"]}}
    else:
        longer = {"epochs": 5, "data_options": {"num_images": 4 * 4096}}
    return replace(grid, experiment="more-images", base=grid.base | longer, keep_models=0)


def learning_rate_search(backbone: str) -> Grid:
    """The search behind :data:`LEARNING_RATES`: every method with the same short budget."""
    base = base_config(backbone) | {"epochs": SEARCH_EPOCHS[backbone]}
    variants = {
        f"{name} {rate:g}": changes | {"learning_rate": rate}
        for name, changes in first_light(backbone).variants.items()
        for rate in SEARCHED_RATES[backbone]
    }
    return Grid("learning-rate-search", base, variants, seeds=(SEARCH_SEED,))
