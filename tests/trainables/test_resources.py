"""What packs take of a cluster, and what it costs: closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.resources import BESIDES, GPU_MEMORY, Prices, Resources, of_sweep_file, usage, with_gpus

SECONDS = {"NVIDIA H100 80GB HBM3": 7200.0, "NVIDIA A100-SXM4-40GB": 3600.0}
BY_KIND = {"H100": 4.0, "A100": 1.0}


def _prices(**given: float) -> Prices:
    """As in a sweep file, where a number for GPUs is the price of any."""
    return Prices.model_validate(given)


def test_hours_are_seconds_times_what_is_set_aside() -> None:
    used = usage(SECONDS, Resources(cpu=4, gpu=0.5), _prices(gpu=2.0, cpu=0.1))
    assert (used.gpu_hours, used.cpu_hours) == (1.5, 12.0)
    assert used.cost == pytest.approx(1.5 * 2.0 + 12 * 0.1)


@pytest.mark.parametrize(
    ("seconds", "resources", "prices", "cost"),
    [
        (SECONDS, Resources(gpu=1), Prices(gpu=BY_KIND), 2 * 4 + 1),
        (SECONDS | {"cpu": 3600.0}, Resources(gpu=1), Prices(gpu=BY_KIND), (2 * 4 + 1) * 4 / 3),  # failed: the mean
        (SECONDS | {"NVIDIA L4": 1.0}, Resources(gpu=1), Prices(gpu=BY_KIND), None),
        ({"cpu": 3600.0}, Resources(gpu=1), Prices(gpu=BY_KIND), None),
        ({}, Resources(gpu=1), Prices(gpu=BY_KIND), 0),
        ({"cpu": 3600.0}, Resources(gpu=1), Prices(gpu={"H100": 3.0}), 3),
        (SECONDS, Resources(gpu=1), Prices(gpu={"H100": 3.0, "any": 0.5}), 2 * 3 + 0.5),
        (SECONDS, Resources(gpu=1), Prices(cpu=1.0), None),
        ({"cpu": 7200.0}, Resources(cpu=2), _prices(gpu=2.0), None),
        ({"cpu": 7200.0}, Resources(cpu=2), Prices(cpu=0.05), 0.2),
        ({"cpu": 7200.0}, Resources(cpu=2), Prices(), None),
    ],
)
def test_cost(seconds: dict[str, float], resources: Resources, prices: Prices, cost: float | None) -> None:
    assert usage(seconds, resources, prices).cost == (cost if cost is None else pytest.approx(cost))


@pytest.mark.parametrize(
    ("device", "price"),
    [
        ("NVIDIA L4", 1.0),
        ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-40GB", 2.0),
        ("NVIDIA A100-SXM4-80GB", 3.0),
        ("nvidia a100-sxm4-80gb", 3.0),
        ("Tesla T4", None),
    ],
)
def test_a_price_is_found_by_whole_words_of_the_name(device: str, price: float | None) -> None:
    assert Prices(gpu={"L4": 1.0, "A100": 2.0, "A100-SXM4-80GB": 3.0}).of_gpu(device) == price


@given(
    seconds=st.dictionaries(st.sampled_from(["cpu", *SECONDS]), st.floats(0, 1e6), min_size=1),
    price=st.floats(0.01, 10),
)
def test_one_price_for_all_is_the_same_by_kind(seconds: dict[str, float], price: float) -> None:
    one = usage(seconds, Resources(gpu=1), _prices(gpu=price)).cost
    by_kind = usage(seconds, Resources(gpu=1), Prices(gpu=dict.fromkeys(BY_KIND, price))).cost
    assert one is not None
    assert by_kind is not None
    assert math.isclose(by_kind, one, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"gpu": 1.5}, "gpu: 1.5 should be a whole number, or below 1 to share a GPU"),
        ({"cpu": 0}, "one of cpu and gpu should be above 0"),
        ({"accelerator": "H100"}, "accelerator: 'H100' is a kind of GPU, and gpu is 0"),
    ],
)
def test_what_no_cluster_can_set_aside(given: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Resources.model_validate(given)


@given(st.sampled_from(sorted(GPU_MEMORY)), st.floats(0.01, 400))
def test_as_many_packs_share_a_gpu_as_have_room(kind: str, memory: float) -> None:
    share = with_gpus({"gpu": "auto", "accelerator": kind}, memory)["gpu"]
    packs = int(1 / share + 1e-9)
    assert packs * round(share * 1e4) <= 1e4  # as Ray counts
    assert packs == 1 or packs * (memory + BESIDES) <= GPU_MEMORY[kind]
    assert packs >= 1000 or (packs + 1) * (memory + BESIDES) > GPU_MEMORY[kind]


def test_a_share_follows_from_the_whole_sweep_file() -> None:
    asked = {"gpu": "auto", "accelerator": "H100"}
    assert of_sweep_file({"resources": asked})[0] == Resources(gpu=0.0769, accelerator="H100")  # 13 of 6 GiB
    assert of_sweep_file({"resources": asked, "pack": {"memory": 37}})[0].gpu == 0.5
    assert of_sweep_file({"resources": asked, "pack": {"memory": 100}})[0].gpu == 1
    assert with_gpus({"gpu": 0.5}, 4) == {"gpu": 0.5}


@pytest.mark.parametrize("kind", [{}, {"accelerator": "RTX"}, {"accelerator": ["H100"]}])
def test_a_share_of_an_unknown_gpu(kind: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"gpu: auto needs accelerator as one of .*H100.*; of other kinds give gpu as a"
    ):
        with_gpus({"gpu": "auto", **kind}, 4)
