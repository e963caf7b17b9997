"""Views against what the same operations do to an array of indices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.calibration import views
from jaxprune.calibration.views import SPREAD, Factor, NotFollowed

SHAPE = (4, 6, 2)
INDEX = np.arange(48).reshape(SHAPE)


def entries(view, shape):
    """Which entry of the leaf stands at each place of the value; -1 where none does."""
    strides = (12, 2, 1)
    out = np.full(shape, -1)
    own = np.array(sum(o * s for o, s in zip(view.offset, strides, strict=True)))
    for factors in view.axes:
        along = np.zeros(1, int)
        for f in factors:
            step = 0 if f.axis == SPREAD else f.stride * strides[f.axis]
            along = (along[:, None] + np.arange(f.size) * step).ravel()
        own = own[..., None] + along
    out[tuple(slice(a, a + n) for a, n in zip(view.start, own.shape, strict=True))] = own
    return out


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("transpose"), st.permutations([0, 1, 2])),
        st.tuples(
            st.just("reshape"), st.sampled_from([(4, 6, 2), (2, 2, 12), (24, 2, 1), (3, 8, 2), (8, 2, 3), (1, 48, 1)])
        ),
        st.tuples(
            st.just("slice"), st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 4), st.integers(1, 2))
        ),
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_views_follow_what_happens_to_indices(operations):
    view, array = views.whole(0, SHAPE), INDEX
    for name, argument in operations:
        try:
            if name == "transpose":
                view, array = views.transpose(view, argument), array.transpose(argument)
            elif name == "reshape":
                if array.size != 48:
                    continue
                view, array = views.reshape(view, array.shape, argument), array.reshape(argument)
            else:
                axis, start, length, step = argument
                limit = min(start + length, array.shape[axis])
                if start >= limit:
                    continue
                bounds = [(0, n, 1) for n in array.shape]
                bounds[axis] = (start, limit, step)
                cut = views.slice_(view, array.shape, *(tuple(x) for x in zip(*bounds, strict=True)))
                assert cut is not None
                view, array = cut, array[tuple(slice(*b) for b in bounds)]
        except NotFollowed:
            return
        np.testing.assert_array_equal(entries(view, array.shape), array)


def test_broadcasts_spread_entries():
    view = views.broadcast(views.squeeze(views.whole(0, (4, 6, 1)), (2,)), (4, 6), (3, 4, 5, 6), (1, 3))
    assert view.axes == ((Factor(SPREAD, 3),), (Factor(0, 4),), (Factor(SPREAD, 5),), (Factor(1, 6),))


def test_slices_of_a_part():
    view = views.whole(0, SHAPE)._replace(start=(2, 0, 0))  # rows 2 to 6 of a value of 8
    before = views.slice_(view, (8, 6, 2), (0, 0, 0), (2, 6, 2), (1, 1, 1))
    assert before is None
    within = views.slice_(view, (8, 6, 2), (1, 0, 0), (4, 6, 2), (1, 1, 1))
    assert within is not None
    expected = np.concatenate([np.full((1, 6, 2), -1), INDEX[:2]])
    np.testing.assert_array_equal(entries(within, (3, 6, 2)), expected)


@pytest.mark.parametrize(
    ("what", "operation"),
    [
        ("strided slice of a concatenation", lambda v: views.slice_(v, (8, 6, 2), (0, 0, 0), (8, 6, 2), (2, 1, 1))),
        ("reshape of a concatenation", lambda v: views.reshape(v, (8, 6, 2), (48, 2))),
        ("splits an axis unevenly", lambda v: views.split([Factor(0, 4), Factor(1, 3)], [6, 2])),
        ("splits an axis unevenly", lambda v: views.split([Factor(0, 6)], [4, 3])),
        (
            "merged axes",
            lambda v: views.slice_(
                views.reshape(views.whole(0, SHAPE), SHAPE, (24, 2)), (24, 2), (1, 0), (5, 2), (1, 1)
            ),
        ),
    ],
)
def test_what_cannot_be_told_says_so(what, operation):
    with pytest.raises(NotFollowed, match=what):
        _ = operation(views.whole(0, SHAPE)._replace(start=(2, 0, 0)))
