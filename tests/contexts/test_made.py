"""MADE: the incremental pass equals the parallel pass, and a context sees exactly the features before it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arcsm import MADE
from incremental_passes import condition_for, incremental_contexts, jacobian_sizes

BATCH_SHAPES = ((), (1,), (5,), (2, 3))


@st.composite
def mades(draw: st.DrawFn) -> MADE:
    features = draw(st.integers(1, 8))
    layers = draw(st.integers(0, 3))
    residual = draw(st.booleans())
    width = draw(st.integers(1, 20))
    sizes = [width] * layers if residual else [draw(st.integers(1, 20)) for _ in range(layers)]
    condition = draw(st.sampled_from(("none", "dense", "classes", "both")))
    order = draw(st.one_of(st.none(), st.permutations(range(features))))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    made = MADE(
        features=features,
        context_features=draw(st.integers(1, 4)),
        hidden_features=sizes,
        condition_features=draw(st.integers(1, 3)) if condition in ("dense", "both") else 0,
        order=order,
        classes=draw(st.integers(1, 4)) if condition in ("classes", "both") else 0,
        residual=residual,
        sinusoids=draw(st.integers(0, 3)),
        max_frequency=3.0,
    )
    return randomised(made)


def randomised(made: MADE) -> MADE:
    """Return the context in double precision, with random biases."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return made.double()


@given(mades(), st.sampled_from(BATCH_SHAPES), st.booleans())
def test_incremental_equals_parallel(made: MADE, shape: tuple[int, ...], shared_condition: bool) -> None:
    x = torch.randn(*shape, made.features, dtype=torch.float64)
    condition = condition_for(made, () if shared_condition else shape)
    parallel = made(x, condition)
    assert parallel.shape == (*shape, made.features, made.context_features)
    torch.testing.assert_close(incremental_contexts(made, x, condition), parallel, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("condition_features", [0, 2])
def test_incremental_equals_parallel_for_no_rows(condition_features: int) -> None:
    made = randomised(MADE(3, 2, (8,), condition_features=condition_features))
    x = torch.zeros(0, 3, dtype=torch.float64)
    condition = condition_for(made, (0,))
    assert incremental_contexts(made, x, condition).shape == made(x, condition).shape == (0, 3, 2)


@given(mades())
def test_a_context_depends_on_no_feature_that_comes_later_in_the_order(made: MADE) -> None:
    influence = jacobian_sizes(made, condition_for(made, ()))
    for position, d in enumerate(made.order):
        for e in made.order[position:]:
            assert influence[d, e] == 0.0


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("order", [None, (3, 0, 4, 2, 1)])
def test_a_context_depends_on_every_feature_before_it_in_the_order(
    order: tuple[int, ...] | None, layers: int, residual: bool
) -> None:
    made = randomised(MADE(5, 3, [16] * layers, order=order, residual=residual))
    influence = jacobian_sizes(made)
    for position, d in enumerate(made.order):
        for e in made.order[:position]:
            assert influence[d, e] > 1e-6


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["dense", "classes"])
def test_the_condition_reaches_every_feature_including_the_first(kind: str, layers: int, features: int) -> None:
    sizes = {"condition_features": 2} if kind == "dense" else {"classes": 2}
    made = randomised(MADE(features, 3, [8] * layers, **sizes))
    x = torch.randn(features, dtype=torch.float64)
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    if kind == "classes":
        first, second = torch.tensor(0), torch.tensor(1)
    assert (made(x, first) - made(x, second)).abs().amin() > 1e-6


@given(mades())
def test_gradients_reach_every_weight_that_is_not_masked(made: MADE) -> None:
    x = torch.randn(16, made.features, dtype=torch.float64)
    weights = torch.randn(16, made.features, made.context_features, dtype=torch.float64)
    (made(x, condition_for(made, (16,))) * weights).sum().backward()
    masks = made.masked_layers()
    # a unit gets a gradient only if a unit above it sees it
    is_seen = [above.mask.any(0) for above in masks[1:]] + [torch.ones(len(masks[-1].mask), dtype=torch.bool)]
    for index in reversed(range(len(masks) - 1)):
        is_seen[index] = (masks[index + 1].mask & is_seen[index + 1][:, None]).any(0)
        if made.residual and index + 1 < len(masks) - 1:
            is_seen[index] |= is_seen[index + 1]
    for layer, seen in zip(masks, is_seen, strict=True):
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        expected = layer.mask & seen[:, None]
        assert torch.equal(layer.weight.grad != 0.0, expected)
        assert torch.equal(layer.bias.grad != 0.0, seen)


def test_order_lists_features_in_the_order_of_the_chain_rule() -> None:
    made = randomised(MADE(3, 2, (16,), order=(2, 0, 1)))
    influence = jacobian_sizes(made) > 1e-6
    assert made.order == (2, 0, 1)
    assert influence.tolist() == [[False, False, True], [True, False, True], [False, False, False]]


def test_the_default_order_is_that_of_the_columns() -> None:
    torch.manual_seed(1)
    default = MADE(4, 2, (8,))
    torch.manual_seed(1)
    given_order = MADE(4, 2, (8,), order=(0, 1, 2, 3))
    x = torch.randn(5, 4)
    assert torch.equal(default(x), given_order(x))
    assert default.config() == given_order.config()


def test_reversing_the_order_reverses_the_columns() -> None:
    torch.manual_seed(1)
    forward = MADE(4, 2, (8,))
    torch.manual_seed(1)
    backward = MADE(4, 2, (8,), order=(3, 2, 1, 0))
    x = torch.randn(5, 4)
    torch.testing.assert_close(backward(x), forward(x.flip(-1)).flip(-2))


def test_without_hidden_layers_contexts_are_affine() -> None:
    made = randomised(MADE(4, 2, ()))
    x, y = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(made(0.25 * x + 0.75 * y), 0.25 * made(x) + 0.75 * made(y), rtol=0.0, atol=1e-13)


@given(mades())
def test_config_rebuilds_the_context(made: MADE) -> None:
    copy = MADE(**made.config()).double()
    copy.load_state_dict(made.state_dict())
    x = torch.randn(3, made.features, dtype=torch.float64)
    condition = condition_for(made, (3,))
    assert torch.equal(copy(x, condition), made(x, condition))


def test_two_incremental_passes_at_once_are_independent() -> None:
    made = randomised(MADE(4, 2, (8, 8)))
    x, y = torch.randn(2, 5, 4, dtype=torch.float64)
    states = made.begin((5,)), made.begin((5,))
    steps: list[list[Tensor]] = [[], []]
    for d in range(4):
        for state, rows, contexts in zip(states, (x, y), steps, strict=True):
            contexts.append(made.step(state, None if d == 0 else rows[:, d - 1]))
    torch.testing.assert_close(torch.stack(steps[0], -2), made(x), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(torch.stack(steps[1], -2), made(y), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"features": -1}, "features=-1"),
        ({"features": 2, "context_features": 0}, "context_features=0"),
        ({"features": 2, "hidden_features": (8, 0)}, "hidden_features"),
        ({"features": 3, "order": (0, 1)}, "order"),
        ({"features": 3, "order": (0, 1, 1)}, "order"),
        ({"features": 3, "order": (1, 2, 3)}, "order"),
        ({"features": 2, "condition_features": -1}, "-1"),
        ({"features": 2, "classes": -1}, "-1"),
        ({"features": 2, "hidden_features": (8, 9), "residual": True}, "hidden_features"),
        ({"features": 2, "sinusoids": -1}, "sinusoids"),
        ({"features": 2, "sinusoids": 2, "max_frequency": 0.0}, "max_frequency"),
        ({"features": 2, "hide": 0.2}, "hide: expected 0 without missing=True, got 0.2"),
        ({"features": 2, "missing": True, "hide": 0.6}, "hide: expected a share from 0 to 0.5, got 0.6"),
    ],
)
def test_impossible_arguments_are_rejected_by_name(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MADE(**arguments)
    assert "\n" not in str(error.value)
