"""13, the explorer."""

from functools import cache

from .exercise import Exercise


@cache
def _explorer():
    from ...figures.explorer import Explorer  # loads networks, which no other page's exercises need

    return Explorer()


def _parts_the_networks(number) -> bool:
    from ...figures.explorer import DIGITS, State

    if number not in range(DIGITS):
        return False
    first, second = (
        _explorer().answer(State(f"photo-digits {number}", pooling=p)).best(1)[0] for p in ("GAP", "SimPool")
    )
    return first[0] != second[0]


def _is_last_with_two(threshold) -> bool:
    from ...figures.explorer import State

    def area(threshold: float) -> float:
        x0, y0, x1, y1 = _explorer().answer(State("photo-digits 0", threshold=threshold)).box
        return (x1 - x0) * (y1 - y0)

    return 0 < threshold < 1 and area(threshold) > 17 >= area(min(threshold + 0.05, 1.0))


EXERCISES = {
    1: Exercise(
        form="the number of a test image, from 0 to 11",
        right=_parts_the_networks,
        hint="Leave the image, change the pooling between GAP and SimPool, and read which score is the largest.",
        wrong=[0, 12, -1, "photo-digits 0"],
    ),
    2: Exercise(
        form="a threshold in steps of 0.05, from 0 to 1",
        right=_is_last_with_two,
        hint="At this threshold the box has more than one position and one step above it has one. What joins the box "
        "below the second-brightest position's share?",
        wrong=[1.0, 0.0, 0.1, 50],
    ),
}
