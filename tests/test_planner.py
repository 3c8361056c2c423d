"""How a scale is split into M and N: METHOD's table, by-hand wishes, contradictions, and properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tudsr.errors import InputError
from tudsr.planner import MAX_PIXELS, MAX_SIDE, Plan, plan_passes

SLACK = 1 + 2e-6  # of a float that was split and multiplied again


def half_up(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def shape(plan: Plan) -> list[tuple[int, float]]:
    return [(step.stage, round(step.ratio, 6)) for step in plan.passes]


@pytest.mark.parametrize(
    ("scale", "passes"),
    [
        (4, [(1, 2), (2, 2)]),  # M2N2
        (8, [(1, 4), (2, 2)]),  # M4N2
        (2, [(1, 1), (2, 2)]),
        (3, [(1, 1.5), (2, 2)]),
        (5.3, [(1, 2.65), (2, 2)]),
        (1, [(1, 1)]),
        (1.5, [(1, 1.5)]),
        (1.999, [(1, 1.999)]),
        (12, [(1, 4), (2, 2), (2, 1.5)]),
        (16, [(1, 4), (2, 2), (2, 2)]),
        (32, [(1, 4), (2, 2), (2, 2), (2, 2)]),
        (24, [(1, 4), (2, 2), (2, 1.732051), (2, 1.732051)]),
    ],
)
def test_the_methods_table(scale, passes):
    plan = plan_passes(30, 40, scale=scale)
    assert shape(plan) == passes
    assert (plan.m, plan.n) == (passes[0][1], passes[1][1] if len(passes) > 1 else 1)
    assert (plan.height, plan.width) == (half_up(30 * scale), half_up(40 * scale))


@pytest.mark.parametrize("scale", [2.4 / 0.3, 8.0000001, math.nextafter(8, 9)])
def test_a_hair_above_eight_is_still_two_passes(scale):
    assert len(plan_passes(30, 40, scale=scale).passes) == 2


def test_sizes_of_every_pass():
    plan = plan_passes(101, 67, scale=8)
    assert [(step.height, step.width) for step in plan.passes] == [(404, 268), (808, 536)]
    plan = plan_passes(3, 1, scale=1.5)
    assert (plan.height, plan.width) == (5, 2)  # 4.5 and 1.5, rounded half up


@pytest.mark.parametrize(
    ("wish", "passes"),
    [
        ({"scale": 8, "m": 2}, [(1, 2), (2, 4)]),
        ({"scale": 8, "n": 4}, [(1, 2), (2, 4)]),
        ({"scale": 8, "m": 8, "n": 1}, [(1, 8), (2, 1)]),
        ({"m": 3, "n": 1.5}, [(1, 3), (2, 1.5)]),
        ({"scale": 4, "stage": 1}, [(1, 4)]),  # M4
        ({"scale": 8, "stage": 1}, [(1, 8)]),  # M8
        ({"scale": 4, "stage": 2}, [(2, 4)]),  # N4
        ({"scale": 8, "stage": 2}, [(2, 8)]),  # N8
    ],
)
def test_wishes_by_hand(wish, passes):
    plan = plan_passes(16, 16, **wish)
    assert shape(plan) == passes
    by_stage = {stage: ratio for stage, ratio in reversed(passes)}
    assert (plan.m, plan.n) == (by_stage.get(1, 1), by_stage.get(2, 1))


def test_a_target_size_takes_the_larger_ratio_and_stretches_the_middle_in_proportion():
    plan = plan_passes(100, 100, size=(400, 800))
    assert shape(plan) == [(1, 4), (2, 2)]
    middle, last = plan.passes
    assert (last.height, last.width) == (400, 800)
    assert (middle.height, middle.width) == (round(100 * 4 ** (2 / 3)), 400)


def test_a_target_size_of_equal_ratios_is_the_scale():
    assert plan_passes(30, 50, size=(120, 200)).passes == plan_passes(30, 50, scale=4).passes


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "not neither"),
        ({"scale": 2, "size": (64, 64)}, "not both"),
        ({"m": 2}, "not neither"),
        ({"scale": 0.5}, "at least 1"),
        ({"scale": math.nan}, "finite"),
        ({"scale": math.inf}, "finite"),
        ({"size": (31, 64)}, "may not shrink"),
        ({"scale": 4, "m": 0.5}, "m is 0.5"),
        ({"scale": 4, "n": math.nan}, "n is nan"),
        ({"m": -2, "n": -2}, "m is -2"),
        ({"scale": 8, "m": 2, "n": 2}, "do not make x8"),
        ({"scale": 4, "m": 8}, "do not make x4"),
        ({"scale": 4, "stage": 1, "m": 4}, "leave m and n out"),
        ({"scale": 4, "stage": 2, "n": 4}, "leave m and n out"),
    ],
)
def test_contradictions_are_input_errors(wish, words):
    with pytest.raises(InputError, match=words):
        plan_passes(32, 32, **wish)


@pytest.mark.parametrize(
    ("scale", "max_m", "max_n", "passes"),
    [
        (4, 2, 2, [(1, 2), (2, 2)]),
        (8, 2, 2, [(1, 2), (2, 2), (2, 2)]),
        (8, 8, 2, [(1, 4), (2, 2)]),
        (16, 8, 2, [(1, 8), (2, 2)]),
        (8, 2, 4, [(1, 2), (2, 4)]),
        (3, 4, 4, [(1, 3)]),
        (3, 2, 4, [(1, 1), (2, 3)]),  # stage 1 cannot do it alone, stage 2 can
        (1.5, 1, 2, [(1, 1), (2, 1.5)]),
        (54, 2, 3, [(1, 2), (2, 3), (2, 3), (2, 3)]),
        (4, 4, 1, [(1, 4)]),
    ],
)
def test_a_models_own_ranges_bound_the_ratios(scale, max_m, max_n, passes):
    assert shape(plan_passes(30, 40, scale=scale, max_m=max_m, max_n=max_n)) == passes


@pytest.mark.parametrize(
    ("scale", "once", "passes"),
    [
        (4, 4, [(1, 4)]),
        (2, 4, [(1, 2)]),
        (3, 2, [(1, 1.5), (2, 2)]),
        (4, 3.9, [(1, 2), (2, 2)]),
        (5, 4, [(1, 2.5), (2, 2)]),
        (6, 8, [(1, 3), (2, 2)]),  # beyond what stage 1 was trained for
        (8, 4, [(1, 4), (2, 2)]),
    ],
)
def test_a_model_may_be_better_in_one_pass(scale, once, passes):
    assert shape(plan_passes(30, 40, scale=scale, once=once)) == passes


def test_a_model_that_cannot_go_on_says_how_far_it_gets():
    with pytest.raises(InputError, match=r"x5 is more than this model makes; up to x4 is accepted"):
        plan_passes(30, 40, scale=5, max_m=4, max_n=1)


def test_ratios_by_hand_may_leave_the_ranges():
    assert shape(plan_passes(30, 40, m=8, n=4, max_m=2, max_n=2)) == [(1, 8), (2, 4)]
    assert shape(plan_passes(30, 40, scale=8, stage=1, max_m=2)) == [(1, 8)]


@pytest.mark.parametrize(
    ("height", "width", "wish"),
    [
        (1, 1024, {"scale": 1024.5}),
        (4096, 4096, {"scale": 16}),
        (1, 1, {"size": (1, MAX_SIDE + 1)}),
        (1, 1, {"size": (MAX_PIXELS // 2**15 + 1, 2**15)}),
        (1, 1, {"size": (10**400, 10**400)}),
        (100, 100, {"scale": 1e308}),
        (1, 1, {"m": 2000, "n": 2000}),
    ],
)
def test_outputs_beyond_every_memory_are_refused(height, width, wish):
    with pytest.raises(InputError, match=f"too large; at most {MAX_SIDE} a side and {MAX_PIXELS} in all"):
        plan_passes(height, width, **wish)


def test_the_largest_outputs_are_planned():
    assert plan_passes(1, 1024, scale=1024).width == MAX_SIDE
    plan = plan_passes(1, 1, size=(2**15, 2**16))
    assert plan.height * plan.width == MAX_PIXELS


def check_invariants(plan: Plan, height: int, width: int) -> None:
    before = (height, width)
    for step in plan.passes:
        assert step.height >= before[0]
        assert step.width >= before[1]
        before = (step.height, step.width)
    assert math.prod(step.ratio for step in plan.passes) == pytest.approx(plan.scale, rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 230), st.integers(1, 230), st.floats(1, 200))  # within MAX_PIXELS
def test_any_scale(height, width, scale):
    plan = plan_passes(height, width, scale=scale)
    check_invariants(plan, height, width)
    assert (plan.height, plan.width) == (half_up(height * scale), half_up(width * scale))
    assert plan.passes[0].stage == 1
    assert plan.passes[0].ratio <= 4 * SLACK
    assert all(step.stage == 2 and step.ratio <= 2 * SLACK for step in plan.passes[1:])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 4000), st.integers(0, 4000))
def test_any_target_size(height, width, more_h, more_w):
    plan = plan_passes(height, width, size=(height + more_h, width + more_w))
    check_invariants(plan, height, width)
    assert (plan.height, plan.width) == (height + more_h, width + more_w)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(1, 8), st.floats(1, 4))
def test_any_m_and_n(height, width, m, n):
    plan = plan_passes(height, width, m=m, n=n)
    check_invariants(plan, height, width)
    assert (plan.m, plan.n) == (m, n)
    assert (plan.height, plan.width) == (half_up(height * m * n), half_up(width * m * n))
