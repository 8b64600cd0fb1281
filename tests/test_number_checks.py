"""A number that means something else than its author thinks is refused where it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkerloop.errors import DataError, PlanError
from tinkerloop.number_checks import check_finite_number, check_positive_number, check_whole

HUGE = pytest.param(10**400, id="10**400")  # too large for a float


@pytest.mark.parametrize("value", [0, -1, True, 2.0, 2.5, float("nan"), "3", None])
def test_what_is_no_whole_number_of_at_least_one_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=r"^every must be a whole number of at least 1, got "):
        check_whole("every", value, 1)


@pytest.mark.parametrize("value", [1, 10**30, np.int64(3)])
def test_a_whole_number_is_accepted(value: Any) -> None:
    check_whole("every", value, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, True, "1", None, 1j, HUGE])
def test_what_is_no_finite_number_of_at_least_zero_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^seconds must be a finite number of at least 0, got "):
        check_finite_number("seconds", value, 0, error=DataError)


@pytest.mark.parametrize("value", [-1e300, 0, 2, np.float32(0.5)])
def test_a_finite_number_is_accepted(value: Any) -> None:
    check_finite_number("above", value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1", None, HUGE])
def test_what_is_no_finite_number_above_zero_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=r"^seconds must be a finite number above 0, got "):
        check_positive_number("seconds", value)


@pytest.mark.parametrize("value", [1e-300, 3, np.float32(0.5)])
def test_a_number_above_zero_is_accepted(value: Any) -> None:
    check_positive_number("seconds", value)
