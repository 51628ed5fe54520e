"""Critical samples of linear classifiers, for which what lies in a box is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import run, study, trial
from scipy.stats import hypergeom
from torch import Tensor

from trainables.critical import critical_samples, standard_error
from trainables.findings import Value
from trainables.settings import CriticalSamples, Measure
from trainables.streams import Purpose, normals, words
from trainables.study import Study

TWO = '{"classes":2,"dimension":6,"name":"teacher","test_size":200,"train_size":50}'
FIVE = '{"classes":5,"dimension":6,"name":"teacher","test_size":200,"train_size":50}'
ALL = 1000


def searched(of: Study, **wanted: object) -> Value:
    (found,) = critical_samples(of, CriticalSamples.model_validate({"examples": ALL} | wanted))
    return found


def ratio(of: Study, **wanted: object) -> float:
    return float(searched(of, **wanted).value[0])


def margins_and_slopes(of: Study) -> tuple[Tensor, Tensor]:
    """Of a linear net: how far each class lies below the predicted one, and how far a box of radius 1 shifts it.

    Each of shape (examples, classes); the predicted class has 0 and 0.
    """
    weight, bias = of.group.parameters["1.weight"][0], of.group.parameters["1.bias"][0]
    outputs = of.group.data.dataset.test_inputs @ weight.T + bias
    best = outputs.argmax(1)
    return outputs.amax(1, keepdim=True) - outputs, (weight[best][:, None] - weight).abs().sum(2)


def possible(of: Study, radius: float) -> float:
    """The fraction of examples with another class in the box."""
    margins, slopes = margins_and_slopes(of)
    return float((margins < radius * slopes).any(1).double().mean())


RADII = st.floats(1e-3, 1)
SEEDS = st.integers(0, 2**40)


@settings(max_examples=25, deadline=None)
@given(RADII, SEEDS)
def test_of_two_linear_classes_a_whole_step_finds_all_there_is(radius: float, seed: int) -> None:
    """The gradient's sign leads straight to the corner of the box where the other class is strongest."""
    of = study([trial(dataset=TWO, arch="linear", seed=seed)])
    assert ratio(of, radius=radius, step=1, noise=0, iterations=1) == possible(of, radius)


@settings(max_examples=10, deadline=None)
@given(RADII, SEEDS)
def test_what_is_found_is_there(radius: float, seed: int) -> None:
    of = study([trial(dataset=FIVE, arch="linear", seed=seed)])
    assert ratio(of, radius=radius) <= possible(of, radius)


def sharpened(of: Study, factor: float) -> Study:
    return replace(of, group=replace(of.group, parameters={k: factor * v for k, v in of.group.parameters.items()}))


def test_almost_all_that_is_there_is_found() -> None:
    """Defaults, five linear classes, far apart, so that the cross-entropy leads to the nearest of the others."""
    pack = [sharpened(study([trial(dataset=FIVE, arch="linear", seed=s)]), 1e3) for s in range(5)]
    found, there = sum(ratio(of) for of in pack), sum(possible(of, CriticalSamples().radius) for of in pack)
    assert 0.97 * there <= found <= there
    assert there > 0.5


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_a_larger_box_holds_no_less(seed: int) -> None:
    """Linear, two classes: the path of the search scales with the box, so this holds for what is found too."""
    of = study([trial(dataset=TWO, arch="linear", seed=seed)])
    found = [ratio(of, radius=r, iterations=3) for r in (1e-9, 0.03, 0.1, 0.3, 1, 30)]
    assert all(a <= b for a, b in pairwise(found))
    assert found[0] == 0
    assert found[-1] == 1


def test_one_iteration_written_out() -> None:
    """First examples of the fixed permutation; step along the sign, plus noise, clipped to the box."""
    of = study([trial(dataset=TWO, arch="linear", seed=3)], epoch=0.5)
    wanted = {"examples": 150, "radius": 0.3, "step": 0.5, "noise": 0.6, "iterations": 1}
    chosen = torch.from_numpy(np.argsort(words(0, Purpose.SUBSET, 200), kind="stable")[:150].copy())
    x = of.group.data.dataset.test_inputs[chosen]
    weight = of.group.parameters["1.weight"][0]
    outputs = x @ weight.T + of.group.parameters["1.bias"][0]
    difference = outputs[:, 1] - outputs[:, 0]
    along = -difference.sign()[:, None] * (weight[1] - weight[0]).sign()
    noise = torch.from_numpy(normals(3, Purpose.CRITICAL, x.numel(), block=2**19).reshape(x.shape))
    moved = (0.3 * (0.5 * along + 0.6 * noise)).clamp(-0.3, 0.3) @ (weight[1] - weight[0])
    expected = float((difference * (difference + moved) < 0).double().mean())
    assert 0 < expected < possible(of, 0.3)
    assert ratio(of, **wanted) == expected


def test_being_sure_does_not_hide_the_way() -> None:
    """In float32 a probability of 1 has no gradient; its log odds have one."""
    of = study([trial(dataset=TWO, arch="linear", precision="float32")])
    assert ratio(of) == ratio(sharpened(of, 1e4)) > 0.05


def test_noise_is_of_the_seed_and_the_epoch() -> None:
    wanted = {"radius": 1, "step": 0.01, "noise": 0.5, "iterations": 2}
    one = study([trial(dataset=FIVE, arch="linear")])
    assert 0 < ratio(one, **wanted) == ratio(one, **wanted) < 1
    later = replace(one, group=replace(one.group, epoch=1.0))
    renamed = replace(one, group=replace(one.group, trials=[trial(dataset=FIVE, arch="linear", seed=1)]))
    assert len({ratio(of, **wanted) for of in (one, later, renamed)}) == 3


@pytest.mark.parametrize("arch", ["mlp", "plugins:convnet", "plugins:with_batchnorm", "plugins:residual"])
def test_engines_packs_and_chunks_agree(arch: str) -> None:
    pack = [trial(dataset=FIVE, arch=arch, seed=s) for s in (0, 1, 0, 2)]
    wanted = {"radius": 0.5, "iterations": 5, "examples": 100}
    alone = [ratio(study([t], "loop"), **wanted) for t in pack]
    assert alone[0] == alone[2]
    assert 0 < min(alone) < max(alone) < 1
    for engine in ("vmap", "fused") if arch == "mlp" else ("vmap",):
        assert searched(study(pack, engine, chunk=60), **wanted).value.tolist() == alone


@pytest.mark.parametrize(("drawn", "critical"), [(20, 5), (60, 100), (100, 3), (1, 50)])
def test_standard_error_against_all_draws_there_are(drawn: int, critical: int) -> None:
    """Its mean square over all samples of a test set of 200 is the variance of the fraction, or a little more."""
    counts = np.arange(drawn + 1)
    law = hypergeom(200, critical, drawn).pmf(counts)
    variance = hypergeom(200, critical, drawn).var() / drawn**2
    claimed = float((torch.from_numpy(law) * standard_error(torch.from_numpy(counts), drawn, 200).square()).sum())
    assert variance * 0.88 <= claimed <= variance + 1.1 / drawn**2


def test_the_error_is_zero_only_where_the_whole_test_set_was_searched() -> None:
    of = study([trial(dataset=TWO, arch="linear")])
    assert float(searched(of, examples=200).error) == 0
    assert float(searched(of, examples=20, radius=1e-9).error) > 0


@pytest.mark.parametrize("dataset", ["plugins:regression", "plugins:one_class"])
def test_without_another_class_there_is_nothing_to_search(dataset: str) -> None:
    of = study([trial(dataset=dataset, arch="linear", loss="mse")])
    assert list(critical_samples(of, CriticalSamples())) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_trial_that_diverged_disturbs_nobody(engine: str) -> None:
    """All that is measured of its neighbour, here with every statistic of a forward pass."""
    pack = [trial(dataset=FIVE, arch="plugins:residual", lr=lr, epochs=2) for lr in (0.05, 1e80)]
    wanted = Measure(at=[1], hessian=False, critical_samples={"radius": 0.3})
    together, alone = run(pack, engine, wanted), run(pack[:1], engine, wanted)
    assert together.diverged_at[1] > 0
    found, expected = (done.moments[-1].found.values for done in (together, alone))
    assert {"critical_sample_ratio", "residual_cosine", "dead_fraction", "test_margin"} <= set(found)
    for name in expected:
        assert found[name][0] == pytest.approx(expected[name][0], rel=1e-9, nan_ok=True)
