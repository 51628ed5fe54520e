import math

import numpy as np
import pytest

from analysis.scales import Scale, default_margin, half_width, on_scale, resolution_on_scale, scale_of, smallest_step
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT

SCALES = [
    ("train_loss", "log", 0.1),
    ("test_loss", "log", 0.1),
    ("lambda_max", "log", 0.1),
    ("hessian_frobenius", "log", 0.1),
    ("gradient_norm", "log", 0.1),
    ("gradient_covariance_trace", "log", 0.1),
    ("train_accuracy", "absolute", 0.01),
    ("test_accuracy", "absolute", 0.01),
    ("memorized", "absolute", 0.01),
    ("lambda_min", "absolute", None),
    ("hessian_trace", "absolute", None),
    ("loss_gap", "absolute", None),
    ("accuracy_gap", "absolute", None),
    ("clean_loss", "log", 0.1),
    ("corrupted_loss", "log", 0.1),
    ("noise_scale", "log", 0.1),
    ("stability", "log", 0.1),
    ("unseen_bound", "log", 0.1),
    ("effective_dimension", "log", 0.1),
    ("step_along_e1", "log", 0.1),
    ("covariance_lambda_max", "log", 0.1),
    ("covariance_frobenius", "log", 0.1),
    ("clean_accuracy", "absolute", 0.01),
    ("corrupted_accuracy", "absolute", 0.01),
    ("best_test_accuracy", "absolute", 0.01),
    ("recovered", "absolute", 0.01),
    ("critical_sample_ratio", "absolute", 0.01),
    ("subspace_overlap", "absolute", 0.01),
    ("gradient_top_fraction", "absolute", 0.01),
    ("step_top_fraction", "absolute", 0.01),
    ("covariance_top_fraction", "absolute", 0.01),
    ("dead_fraction", "absolute", 0.01),
    ("saturated_fraction", "absolute", 0.01),
    ("covariance_alignment", "absolute", None),
    ("residual_cosine", "absolute", None),
    ("train_margin", "absolute", None),
    ("train_margin_p10", "absolute", None),
    ("test_margin", "absolute", None),
    ("test_margin_p10", "absolute", None),
    ("best_test_epoch", "absolute", None),
    ("val_loss", "log", 0.1),
    ("val_accuracy", "absolute", 0.01),
    ("my_metric", "absolute", None),
]


@pytest.mark.parametrize(("metric", "scale", "margin"), SCALES)
def test_scale_and_margin_go_by_the_name(metric, scale, margin):
    assert scale_of(metric) == scale
    assert default_margin(metric) == margin


def test_every_statistic_is_among_them():
    known = {*ERROR_COLUMN, *OF_ENDPOINT, "loss_gap", "accuracy_gap", "stability"}
    assert known <= {metric for metric, *_ in SCALES}


def test_a_margin_on_the_log_scale_is_a_factor():
    assert half_width(0.1, Scale.LOG) == pytest.approx(math.log(1.1))
    assert half_width(0.1, Scale.ABSOLUTE) == 0.1
    assert math.isnan(half_width(None, Scale.LOG))


def test_what_the_scale_cannot_take_is_missing():
    values = np.array([1.0, 0.0, -1.0, np.inf, np.nan])
    assert np.isnan(on_scale(values, Scale.LOG)).tolist() == [False, True, True, True, True]
    assert np.isnan(on_scale(values, Scale.ABSOLUTE)).tolist() == [False, False, False, True, True]


def test_resolution_is_relative_on_the_log_scale_and_never_zero():
    values = np.array([2.0, 4.0, 5.0])
    given = np.array([0.2, 0.0, np.nan])
    assert resolution_on_scale(given, values, Scale.LOG) == pytest.approx([0.1, 1e-12, 1e-12])
    assert resolution_on_scale(given, values, Scale.ABSOLUTE) == pytest.approx([0.2, 5e-12, 5e-12])


def test_steps_show_only_where_values_repeat():
    k = np.array([300, 301, 305, 305, 340])
    assert smallest_step(k / 360) == pytest.approx(1 / 360)
    assert smallest_step(np.array([0.1, 0.15, 0.4])) == 0
    assert smallest_step(np.array([0.3, 0.3, np.nan])) == 0
    assert smallest_step(np.array([0.9, 0.9, np.float32(0.9)])) == 0  # rounding, not a step
