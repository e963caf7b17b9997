"""Views against what the same operations do to an array of indices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune._jaxprs import views
from jaxprune._jaxprs.factors import Factor, NotFollowed, run
from jaxprune._jaxprs.primitives import Broadcast, Reshape, Slice, Squeeze, Transpose
from jaxprune._jaxprs.views import moved

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
            step = 0 if f.of is None else f.of.stride * strides[f.of.axis]
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
                move = Transpose(tuple(argument))
            elif name == "reshape":
                if array.size != 48:
                    continue
                move = Reshape(argument)
            else:
                axis, start, length, step = argument
                limit = min(start + length, array.shape[axis])
                if start >= limit:
                    continue
                bounds = [(0, n, 1) for n in array.shape]
                bounds[axis] = (start, limit, step)
                move = Slice(*(tuple(x) for x in zip(*bounds, strict=True)))
            view, array = moved(view, move, array.shape), move(array)
            assert view is not None
        except NotFollowed:
            return
        np.testing.assert_array_equal(entries(view, array.shape), array)


def test_broadcasts_spread_entries():
    flat = moved(views.whole(0, (4, 6, 1)), Squeeze((2,)), (4, 6, 1))
    assert flat is not None
    view = moved(flat, Broadcast((3, 4, 5, 6), (1, 3)), (4, 6))
    assert view is not None
    assert view.axes == ((Factor(3),), (run(0, 4),), (Factor(5),), (run(1, 6),))


def test_slices_of_a_part():
    view = views.whole(0, SHAPE)._replace(start=(2, 0, 0))  # rows 2 to 6 of a value of 8
    before = moved(view, Slice((0, 0, 0), (2, 6, 2), (1, 1, 1)), (8, 6, 2))
    assert before is None
    within = moved(view, Slice((1, 0, 0), (4, 6, 2), (1, 1, 1)), (8, 6, 2))
    assert within is not None
    expected = np.concatenate([np.full((1, 6, 2), -1), INDEX[:2]])
    np.testing.assert_array_equal(entries(within, (3, 6, 2)), expected)


def merged(view):
    """Rows and columns in one axis."""
    found = moved(view, Reshape((24, 2)), SHAPE)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("what", "move", "part", "shape"),
    [
        ("strided slice of a concatenation", Slice((0, 0, 0), (8, 6, 2), (2, 1, 1)), True, (8, 6, 2)),
        ("reshape of a concatenation", Reshape((48, 2)), True, (8, 6, 2)),
        ("splits an axis unevenly", Reshape((3, 8, 2)), False, SHAPE),
        ("splits an axis unevenly", Reshape((4, 4, 3)), False, SHAPE),
        ("merged axes", Slice((1, 0), (5, 2), (1, 1)), False, (24, 2)),
    ],
)
def test_what_cannot_be_told_says_so(what, move, part, shape):
    view = views.whole(0, SHAPE)
    if part:
        view = view._replace(start=(2, 0, 0))
    with pytest.raises(NotFollowed, match=what):
        _ = moved(merged(view) if shape == (24, 2) else view, move, shape)
