from __future__ import annotations

from math import cos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.layers import ShapedReLU
from trainables.shaping import ETA, cosine_map, shaped_relu, tailored_relu


@given(st.integers(13, 1000))
def test_tailored_relus_take_orthogonal_inputs_to_the_wanted_cosine(layers: int) -> None:
    negative, positive = tailored_relu(layers)
    cosine = 0.0
    for _ in range(layers):
        cosine = cosine_map(cosine, negative / positive)
    assert cosine == pytest.approx(ETA, abs=1e-9)


@given(st.integers(1, 12))
def test_a_net_too_shallow_for_that_gets_scaled_relus(layers: int) -> None:
    assert tailored_relu(layers) == (0.0, 2**0.5)


@given(st.floats(0, pi), st.floats(0, 1))
def test_the_map_of_relus_and_of_the_identity(angle: float, a: float) -> None:
    relu = (cos(angle) * (pi - angle) + (1 - cos(angle) ** 2) ** 0.5) / pi  # Cho and Saul 2009
    assert cosine_map(cos(angle), 0.0) == pytest.approx(relu, abs=1e-6)
    assert cosine_map(cos(angle), 1.0) == pytest.approx(cos(angle))
    assert cosine_map(1.0, a) == pytest.approx(1)


@pytest.mark.parametrize(("a", "cosine"), [(0.0, -0.5), (0.3, 0.0), (0.3, 0.7), (0.8, -0.9)])
def test_the_map_is_that_of_gaussian_pairs(a: float, cosine: float) -> None:
    """E phi(u) phi(v) for standard normal u, v of that correlation, by quadrature over a grid of both."""
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    u, e = x[:, None], x[None]
    density = torch.exp(-(u**2 + e**2) / 2)
    phi = ShapedReLU(a * (2 / (1 + a * a)) ** 0.5, (2 / (1 + a * a)) ** 0.5)
    products = phi(u) * phi(cosine * u + (1 - cosine**2) ** 0.5 * e)
    assert float((products * density).sum() / density.sum()) == pytest.approx(cosine_map(cosine, a), abs=1e-4)


@given(st.integers(1, 10**6))
def test_slopes_preserve_the_mean_square(n: int) -> None:
    for negative, positive in (shaped_relu(n), tailored_relu(n % 100 + 1)):
        assert (negative**2 + positive**2) / 2 == pytest.approx(1)


@given(st.integers(1, 10**6))
def test_shaped_relus_differ_from_the_identity_by_the_root_of_the_width(width: int) -> None:
    negative, positive = shaped_relu(width)
    assert negative / positive == pytest.approx(1 - width**-0.5)
