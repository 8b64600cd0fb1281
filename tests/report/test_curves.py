from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.report.curves import reduced


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=30, max_size=400))
def test_a_reduced_curve_has_the_ends_and_the_extremes(values):
    points = reduced(range(len(values)), values, limit=20)
    assert len(points) <= 20
    assert points[0] == (0, values[0])
    assert points[-1] == (len(values) - 1, values[-1])
    assert {min(values), max(values)} <= {value for _, value in points}
    assert all(values[step] == value for step, value in points)
