from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.report.curves import charts, reduced
from tinkerloop.report.run_reading import Series


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=30, max_size=400))
def test_a_reduced_curve_has_the_ends_and_the_extremes(values):
    points = reduced(range(len(values)), values, limit=20)
    assert len(points) <= 20
    assert points[0] == (0, values[0])
    assert points[-1] == (len(values) - 1, values[-1])
    assert {min(values), max(values)} <= {value for _, value in points}
    assert all(values[step] == value for step, value in points)


def test_other_metrics_have_axes_of_their_own():
    names = ["loss", "test/nll", "perplexity", "hardest", "test/score", "other/score", "test/length"]
    drawn = charts({name: Series([0], [1.0]) for name in names})
    assert {chart["title"]: [curve["name"] for curve in chart["curves"]] for chart in drawn} == {
        "Loss": ["loss", "test/nll"],
        "perplexity": ["perplexity"],
        "hardest": ["hardest"],
        "score": ["test/score", "other/score"],
        "length": ["test/length"],
    }
