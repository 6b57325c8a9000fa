"""06, does SimPool need its LayerNorm, and where?"""

from itertools import pairwise

from .exercise import Exercise


def _in_order(*names: str):
    """Whether the numbers of a dictionary grow in the order of ``names``."""

    def right(numbers) -> bool:
        values = [float(dict(numbers)[name]) for name in names]
        return all(low < high for low, high in pairwise(values))

    return right


EXERCISES = {
    1: Exercise(
        form='a set of those of "", "q", "k", "qk" that give the same map',
        right=lambda norms: set(norms) == {"q", "qk"} and not isinstance(norms, str),
        hint="The constant is in the keys and in the query. Where is it the same for all positions, so that softmax "
        "drops it, and where does it ask another question?",
        wrong=[{"k", "qk"}, {"", "q", "k", "qk"}, {"qk"}, "qk"],
    ),
    3: Exercise(
        form="the gradient's size for c = 1, 10 and 100, three numbers",
        right=lambda sizes: len(sizes) == 3 and 0 <= sizes[2] < 1e-3 * min(sizes[:2]),
        hint="Look at one image's map at c = 100: at how many positions is a_i neither 0 nor 1? What is left of the "
        "gradient there?",
        wrong=[(1, 10, 100), (1, 1, 1), (1, 1), (100, 10, 1)],
    ),
    4: Exercise(
        form='a dictionary: the share of the attention that moves, for "centred" and "after a ReLU"',
        right=lambda moves: 0 <= dict(moves)["centred"] < 1e-4 < dict(moves)["after a ReLU"] < 1,
        hint="RMSNorm and LayerNorm differ by the mean that one of them subtracts. Which tokens have one?",
        wrong=[{"centred": 0.03, "after a ReLU": 0.0}, {"centred": 0.0, "after a ReLU": 0.0}, 0.03],
    ),
    5: Exercise(
        form='a dictionary: the loss for "x", "LN(x)" and "x without what is common"',
        right=_in_order("LN(x)", "x without what is common", "x"),
        hint="Use the same seed for each classifier, and the loss of the last step.",
        wrong=[
            {"x": 0.6, "LN(x)": 0.7, "x without what is common": 0.6},
            {"x": 0.7, "LN(x)": 0.7, "x without what is common": 0.7},
            {"x": 0.7, "LN(x)": 0.6},
        ],
    ),
}
