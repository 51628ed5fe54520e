import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainables.counters import bits, keys, normals, uniforms
from trainables.streams import Purpose

CPU = torch.device("cpu")
WORDS = st.integers(-(2**63), 2**63 - 1)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
EXTREME = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**40 - 1, (2**24 - 1) << 39])


def test_bits_are_the_published_output_of_splitmix64() -> None:
    """Of the seed 1234567, as Rosetta Code and the test suites of several languages give it."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = bits(torch.tensor(1234567), torch.arange(5))
    assert [word % 2**64 for word in found.tolist()] == published


@given(WORDS, WORDS, st.integers(1, 20))
def test_a_word_depends_on_its_key_and_counter_alone(key: int, start: int, n: int) -> None:
    counter = torch.tensor(start) + torch.arange(n)  # wraps, as the generator's state does
    both = bits(torch.tensor([[0], [key]]), counter)
    assert torch.equal(both[1], torch.stack([bits(torch.tensor(key), c) for c in counter]))
    assert len(both[1].unique()) == n


def test_bits_leave_key_and_counter_as_they_were() -> None:
    key, counter = torch.tensor([3]), torch.arange(4)
    bits(key, counter)
    assert (key.tolist(), counter.tolist()) == ([3], [0, 1, 2, 3])


def test_keys_belong_to_seed_and_purpose() -> None:
    found = keys([5, 7, 5, 2**63 - 1], Purpose.INPUT_NOISE, CPU)
    assert found.dtype == torch.int64
    assert found[0] == found[2]
    assert len(set(found.tolist()) | set(keys([5, 7], Purpose.PIXELS, CPU).tolist())) == 5


@DTYPES
def test_uniforms_are_uniform_and_below_one(dtype: torch.dtype) -> None:
    u = uniforms(bits(torch.tensor(1), torch.arange(50_000)), dtype)
    assert u.dtype == dtype
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    extreme = uniforms(EXTREME, dtype)
    assert extreme.min() == 0
    assert 1 - 1e-7 < extreme.max() < 1


@DTYPES
def test_normals_are_normal(dtype: torch.dtype) -> None:
    z = normals(bits(torch.tensor(2), torch.arange(200_000)), dtype)
    assert z.dtype == dtype
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    moments = [float(z.double().pow(k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=5 * (96 / 200_000) ** 0.5)  # Var z^4 = 96


@DTYPES
def test_normals_are_finite_and_reach_to_5_8(dtype: torch.dtype) -> None:
    z = normals(EXTREME, dtype)
    assert z.isfinite().all()
    assert float(z.abs().max()) == pytest.approx((48 * torch.log(torch.tensor(2.0)).item()) ** 0.5)


def test_both_precisions_round_the_same_numbers() -> None:
    random = bits(torch.tensor(3), torch.arange(10_000))
    for numbers in (uniforms, normals):
        torch.testing.assert_close(
            numbers(random, torch.float32).double(), numbers(random, torch.float64), rtol=0, atol=5e-6
        )


def test_numbers_of_other_keys_and_neighbouring_counters_are_uncorrelated() -> None:
    n = 20_000
    z = normals(bits(keys([0, 1, 2], Purpose.INPUT_NOISE, CPU)[:, None], torch.arange(n + 1)), torch.float64)
    others = torch.cat([z[:, :-1], z[:, 1:]])
    off_diagonal = torch.corrcoef(others) - torch.eye(6)
    assert float(off_diagonal.abs().max()) < 5 / n**0.5
