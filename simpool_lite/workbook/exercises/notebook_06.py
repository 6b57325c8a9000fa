"""06, does SimPool need its LayerNorm, and where?"""

from .exercise import Exercise


def _both_change(changes) -> bool:
    return {*changes} == {"weight", "bias"} and all(0.01 < float(change) < 1 for change in changes.values())


EXERCISES = {
    1: Exercise(
        form='a set of those of "", "q", "k", "qk" that give the same map',
        right=lambda norms: set(norms) == {"q", "qk"} and not isinstance(norms, str),
        hint="The constant is in the keys and in the query. Where is it the same for all positions, so that softmax "
        "drops it, and where does it ask another question?",
        wrong=[{"k", "qk"}, {"", "q", "k", "qk"}, {"qk"}, "qk"],
    ),
    2: Exercise(
        form='a dictionary: the share of z that changes with another "weight" and with another "bias", 0 to 1',
        right=_both_change,
        hint="SimPool's own LayerNorm divides every token by its own length once more. Does another weight, or a bias, "
        "leave all tokens equally long and without a mean?",
        wrong=[{"weight": 0.0, "bias": 0.0}, {"weight": 0.1, "bias": 0.0}, {"weight": 8, "bias": 6}, 0.1],
    ),
    3: Exercise(
        form='a dictionary: the share of the attention that moves, for "centred" and "after a ReLU"',
        right=lambda moves: 0 <= dict(moves)["centred"] < 1e-4 < dict(moves)["after a ReLU"] < 1,
        hint="RMSNorm and LayerNorm differ by the mean that one of them subtracts. Which tokens have one?",
        wrong=[{"centred": 0.03, "after a ReLU": 0.0}, {"centred": 0.0, "after a ReLU": 0.0}, 0.03],
    ),
    4: Exercise(
        form="a pair: the points that LN none loses at SimPool's best rate, and at the worst rate",
        right=lambda lost: len(lost) == 2 and 0 <= float(lost[0]) < 1 < 3 < float(lost[1]) < 10,
        hint="Mean over the seeds for each rate first. Each loss is against LN none's own best rate, and is not "
        "negative.",
        wrong=[(5.1, 0.0), (0.0, 0.0), (-0.5, 5.0), 5.1],
    ),
}
