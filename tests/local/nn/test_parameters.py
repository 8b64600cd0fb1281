"""The gradient of a failed request leaves no trace."""

from __future__ import annotations

import pytest
import torch

from tinkerloop.local.nn.parameters import ParameterLayout, TrainState, Weights


@pytest.fixture
def state() -> TrainState:
    layout = ParameterLayout({"x": (2, 3)})
    return TrainState(Weights(layout, layout.zeros(torch.device("cpu"))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_added(state, bad):
    state.scratch(1)[0]["x"].fill_(1.0)
    assert state.commit_scratch(1)
    views = state.scratch(2)
    views[0]["x"].fill_(1.0)
    views[1]["x"][1, 2] = bad
    assert not state.commit_scratch(1)
    assert state.gradients["x"].tolist() == [[1.0] * 3] * 2
    assert state.pending == 1


def test_a_finite_gradient_is_added(state):
    for _ in range(2):
        state.scratch(1)[0]["x"].fill_(1.0)
        assert state.commit_scratch(1)
    assert state.gradients["x"].tolist() == [[2.0] * 3] * 2
