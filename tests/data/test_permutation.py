from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkerloop.data.permutation import shuffled_positions


@given(n=st.integers(1, 3000), key=st.text(max_size=5))
@settings(max_examples=60)
def test_every_row_comes_exactly_once(n, key):
    assert sorted(shuffled_positions(key, n, 0, n)) == list(range(n))


@given(n=st.integers(1, 500), data=st.data())
@settings(max_examples=40)
def test_any_slice_is_that_slice_of_the_whole(n, data):
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    whole = shuffled_positions("k", n, 0, n)
    np.testing.assert_array_equal(shuffled_positions("k", n, start, stop), whole[start:stop])


def test_the_order_is_fixed_across_versions_and_platforms():
    assert shuffled_positions("0/shuffle/0", 6, 0, 6).tolist() == [1, 5, 0, 4, 2, 3]
    assert shuffled_positions("7/shuffle/1", 10**9, 10**8, 10**8 + 3).tolist() == [401616851, 994836765, 332647667]


def test_small_orders_are_all_about_equally_frequent():
    seen = Counter(tuple(shuffled_positions(f"{seed}", 4, 0, 4)) for seed in range(4800))
    assert len(seen) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert chi_square < 49.7  # 99.9 % quantile with 23 degrees of freedom


def test_neighbours_do_not_stay_neighbours():
    order = shuffled_positions("0", 10_000, 0, 10_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
