"""The workbook's experiments: which runs each notebook asks for, under each profile."""

from .ablation import Grid

PROFILES = ("smoke", "laptop", "gpu")

# Learning rates were searched on seeds that are not reported, see `data/results/README.md`; epochs are
# enough for the curves to be flat at the end.
SCHEDULES = {
    "convnet_micro": {"epochs": 20, "learning_rate": 4e-3},
    "vit_micro": {"epochs": 40, "learning_rate": 1e-3},
}
SEARCHED_RATES = {"convnet_micro": (2e-3, 4e-3, 8e-3), "vit_micro": (5e-4, 1e-3, 2e-3)}
OTHER_SCHEDULE = {"epochs": 40, "learning_rate": 1e-3}
SMOKE = {"epochs": 1}
SMOKE_DATA = {"num_images": 256}
SMOKE_SEEDS = 2


def base_config(
    backbone: str, profile: str = "laptop", dataset: str = "photo-digits", data_root: str | None = None
) -> dict:
    """The fields of a :class:`~simpool_lite.config.RunConfig` that the runs of a backbone share.

    "laptop" trains until the curves are flat; "smoke" executes every line in seconds, for tests; "gpu" is
    for larger backbones and data, with larger batches.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, got {profile!r}")
    config = {"backbone": backbone, "dataset": dataset, "data_root": data_root}
    config |= SCHEDULES.get(backbone, OTHER_SCHEDULE)
    if dataset == "photo-digits":
        config["target"] = "digit"
    if profile == "smoke":
        config |= SMOKE
        if dataset == "photo-digits":
            config["data_options"] = SMOKE_DATA
    if profile == "gpu":
        config |= {"batch_size": 128, "learning_rate": 2 * config["learning_rate"]}
    return config


def first_light(
    backbone: str,
    profile: str = "laptop",
    seeds: int = 5,
    dataset: str = "photo-digits",
    data_root: str | None = None,
) -> Grid:
    """Notebook 00: a backbone's own pooling (GAP; for a ViT also its class token) against SimPool."""
    variants = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}}
    if backbone.startswith(("vit", "deit")):
        variants = {"CLS": {"pool": "cls"}} | variants
    return Grid(
        experiment="first-light",
        base=base_config(backbone, profile, dataset, data_root),
        variants=variants,
        seeds=min(seeds, SMOKE_SEEDS) if profile == "smoke" else seeds,
        profile=profile,
        keep_models=1,
    )


def learning_rate_search(backbone: str) -> Grid:
    """The search behind :data:`SCHEDULES`: every method with the same short budget, on a seed never reported."""
    base = base_config(backbone) | {"epochs": SCHEDULES[backbone]["epochs"] // 4}
    variants = {
        f"{name} {rate:g}": changes | {"learning_rate": rate}
        for name, changes in first_light(backbone).variants.items()
        for rate in SEARCHED_RATES[backbone]
    }
    return Grid("learning-rate-search", base, variants, seeds=(100,))
