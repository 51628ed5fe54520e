"""Layers against their definitions, and alone against stacked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import stack_module_state, vmap

from trainables.functional import functional_call
from trainables.layers import (
    Dropout,
    GhostBatchNorm,
    PaddedShortcut,
    ShapedReLU,
    coupled_examples,
    draws_random_numbers,
    layer_words,
    norm_groups,
    normalization,
)

WORDS = torch.arange(1, 10001) * 0x5DEECE66D


def dropped(layer: nn.Module, x: Tensor, words: Tensor) -> Tensor:
    with layer_words(words):
        return layer.train()(x)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_fraction_and_the_mean(p: float) -> None:
    out = dropped(Dropout(p, 0), torch.ones(10000, 7, dtype=torch.float64), WORDS)
    assert set(out.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert float((out == 0).double().mean()) == pytest.approx(p, abs=5 * (p * (1 - p) / 70000) ** 0.5)


def test_masks_differ_by_unit_layer_and_example_but_not_by_batch() -> None:
    x = torch.ones(100, 3, 5)
    out = dropped(Dropout(0.5, 1), x, WORDS[:100])
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[:, 0], out[:, 1])
    assert not torch.equal(out, dropped(Dropout(0.5, 2), x, WORDS[:100]))
    assert torch.equal(out[30:40], dropped(Dropout(0.5, 1), x[30:40], WORDS[30:40]))
    assert torch.equal(out, dropped(Dropout(0.5, 1), x, WORDS[:100]))
    correlations = torch.corrcoef(dropped(Dropout(0.5, 0), torch.ones(10000, 20), WORDS).T)
    assert (correlations - torch.eye(20)).abs().max() < 0.06


def test_dropout_in_evaluation_mode_is_the_identity() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(Dropout(0.5, 0).eval()(x), x)


def test_dropout_without_words_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call the net within layer_words"):
        Dropout(0.5, 0)(torch.ones(2, 3))
    with layer_words(None), pytest.raises(RuntimeError, match="call the net within layer_words"):
        Dropout(0.5, 0)(torch.ones(2, 3))


def test_words_are_those_of_the_innermost_pass() -> None:
    layer, x = Dropout(0.5, 0), torch.ones(50, 4)
    with layer_words(WORDS[:50]):
        inside = dropped(layer, x, WORDS[50:100])
        assert not torch.equal(layer(x), inside)
        assert torch.equal(layer(x), dropped(layer, x, WORDS[:50]))


LAYERS = {
    "batch": lambda: normalization("batch", 16, None, image=False),
    "ghost": lambda: normalization("batch", 16, 3, image=False),
    "group": lambda: normalization("group", 16, None, image=False),
    "layer": lambda: normalization("layer", 16, None, image=False),
    "batch of images": lambda: normalization("batch", 16, None, image=True),
    "ghost of images": lambda: normalization("batch", 16, 3, image=True),
    "group of images": lambda: normalization("group", 16, None, image=True),
    "layer of images": lambda: normalization("layer", 16, None, image=True),
    "dropout": lambda: Dropout(0.3, 1),
    "dropout of images": lambda: Dropout(0.3, 1),
    "relu": lambda: ShapedReLU(-0.2, 1.3),
    "shortcut of images": lambda: PaddedShortcut(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_and_alone_agree_buffers_and_both_derivatives_included(name: str) -> None:
    torch.manual_seed(0)
    modules = [LAYERS[name]().double() for _ in range(3)]
    for parameter in (p for m in modules for p in m.parameters()):
        nn.init.normal_(parameter)
    x = torch.randn(3, 8, 16, *[5, 4] * ("images" in name), dtype=torch.float64, requires_grad=True)
    words, along = WORDS[:24].view(3, 8), torch.randn(x.shape, dtype=torch.float64)
    parameters, buffers = stack_module_state(modules)

    def call(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, w: Tensor) -> Tensor:
        with layer_words(w):
            return functional_call(modules[0], (p, b), (x,))

    before = [{k: v.clone() for k, v in m.named_buffers()} for m in modules]
    together = vmap(call)(parameters, buffers, x, words)
    apart = torch.stack(
        [call(dict(m.named_parameters()), b, *a) for m, b, *a in zip(modules, before, x, words, strict=True)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    for i, own in enumerate(before):
        torch.testing.assert_close({k: v[i] for k, v in buffers.items()}, own, rtol=1e-12, atol=1e-12)
    for first, second in zip(_derivatives(together, x, along), _derivatives(apart, x, along), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def _derivatives(outputs: Tensor, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of a function of the outputs, and its Hessian times a vector."""
    (gradient,) = torch.autograd.grad(outputs.sin().sum(), x, create_graph=True)
    (product,) = torch.autograd.grad(gradient, x, along)
    return gradient, product


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
def test_ghost_batch_norm_is_batch_norm_of_each_group_in_turn(size: int, groups: int, image: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(size * groups + 2, 5, *[2, 3] * image, dtype=torch.float64)  # the last group has 2 or 3 fewer
    ghost, plain = (normalization("batch", 5, n, image=image).double() for n in (size, None))
    torch.testing.assert_close(ghost(x), torch.cat([plain(part) for part in x.split(size)]), rtol=1e-12, atol=1e-12)
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def test_ghost_batches_do_not_see_each_other() -> None:
    layer, x = GhostBatchNorm(3, 4), torch.randn(8, 3)
    before = layer(x)
    x[5] += 1
    after = layer(x)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_a_group_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GhostBatchNorm(3, 4)(torch.randn(5, 3))


@pytest.mark.parametrize(
    ("layers", "coupled"),
    [
        ([nn.Linear(2, 2), nn.GroupNorm(1, 2), Dropout(0.5, 0)], 1),
        ([GhostBatchNorm(2, 4), nn.ReLU(), nn.Sequential(GhostBatchNorm(2, 6))], 12),
        ([GhostBatchNorm(2, 8)], 8),
        ([GhostBatchNorm(2, 8), nn.BatchNorm1d(2)], None),
        ([nn.Sequential(nn.BatchNorm2d(2))], None),
    ],
)
def test_which_examples_are_coupled(layers: list[nn.Module], coupled: int | None) -> None:
    assert coupled_examples(nn.Sequential(*layers)) == coupled


def test_minibatches_may_be_cut_where_that_says() -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 4, dtype=torch.float64)
    whole, pieces = (nn.Sequential(GhostBatchNorm(4, 4), nn.Tanh(), GhostBatchNorm(4, 2)).double() for _ in range(2))
    cut = torch.cat([pieces(part) for part in x.split(coupled_examples(pieces) or 24)])
    torch.testing.assert_close(whole(x), cut, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.state_dict(), pieces.state_dict(), rtol=1e-12, atol=1e-12)


def test_only_our_dropout_needs_words() -> None:
    assert draws_random_numbers(nn.Sequential(nn.Linear(2, 2), Dropout(0.1, 0)))
    assert not draws_random_numbers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))


@given(st.integers(1, 2000))
def test_groups_divide_the_channels_and_none_is_a_single_number(channels: int) -> None:
    groups = norm_groups(channels)
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels // groups >= 8


@pytest.mark.parametrize(("channels", "groups"), [(16, 2), (64, 8), (200, 25), (256, 32), (512, 32), (37, 1), (4, 1)])
def test_there_are_as_many_groups_as_allowed(channels: int, groups: int) -> None:
    assert norm_groups(channels) == groups


def test_layer_norm_is_pytorchs_on_vectors() -> None:
    x = torch.randn(6, 12, dtype=torch.float64)
    ours = normalization("layer", 12, None, image=False).double()
    torch.testing.assert_close(ours(x), nn.LayerNorm(12).double()(x), rtol=1e-12, atol=1e-12)


def test_shaped_relu_has_two_slopes() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 3.0])
    torch.testing.assert_close(ShapedReLU(0.25, 1.5)(x), torch.tensor([-0.5, -0.25, 0.0, 4.5]))


@pytest.mark.parametrize("size", [7, 8])
def test_the_shortcut_has_every_second_pixel_and_zero_channels(size: int) -> None:
    x = torch.randn(2, 3, size, size)
    out = PaddedShortcut(3)(x)
    assert out.shape == (2, 6, 4, 4)
    assert torch.equal(out[:, :3], x[..., ::2, ::2])
    assert not out[:, 3:].any()
