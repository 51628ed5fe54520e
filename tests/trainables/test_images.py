from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.images import image_shape

SIDES = st.integers(1, 400)


@given(SIDES, SIDES, st.sampled_from([1, 3, 7]))
def test_an_image_keeps_its_shape_and_a_matrix_has_one_channel(height: int, width: int, channels: int) -> None:
    assert image_shape((channels, height, width)) == (channels, height, width)
    assert image_shape((height, width)) == (1, height, width)


@given(SIDES, st.sampled_from([1, 3]))
def test_numbers_in_a_row_are_a_square_image(side: int, channels: int) -> None:
    assert image_shape((channels * side * side,)) == (channels, side, side)


@pytest.mark.parametrize("shape", [(), (6,), (65,), (2 * 64,), (1, 3, 8, 8)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \(.*\) are not images: allowed are .* or take arch mlp"):
        image_shape(shape)
