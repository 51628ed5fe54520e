"""The names of all built-in statistics; docs/measurements.md says what each of them is. Imports nothing heavy."""

from __future__ import annotations

SE, RESIDUAL, BOUND = "se", "residual", "bound"

GROUPS: dict[str, dict[str, str | None]] = {
    "always": {
        "train_loss": None,
        "train_accuracy": None,
        "test_loss": None,
        "test_accuracy": None,
        "memorized": None,
        "gradient_norm": None,
        "clean_loss": None,
        "clean_accuracy": None,
        "corrupted_loss": None,
        "corrupted_accuracy": None,
        "recovered": None,
        "train_margin": None,
        "train_margin_p10": None,
        "test_margin": None,
        "test_margin_p10": None,
        "dead_fraction": None,
        "saturated_fraction": None,
        "residual_cosine": None,
    },
    "hessian": {
        "lambda_max": RESIDUAL,
        "lambda_min": RESIDUAL,
        "unseen_bound": None,
        "hessian_trace": SE,
        "hessian_frobenius": SE,
        "gradient_top_fraction": BOUND,
        "subspace_overlap": BOUND,
    },
    "hessian.sgd_steps": {"step_top_fraction": SE, "step_along_e1": SE},
    "hessian.density": {"effective_dimension": SE},
    "gradient_noise": {
        "gradient_covariance_trace": SE,
        "noise_scale": SE,
        "covariance_lambda_max": RESIDUAL,
        "covariance_frobenius": SE,
        "covariance_alignment": SE,
        "covariance_top_fraction": BOUND,
    },
    "critical_samples": {"critical_sample_ratio": SE},
}
"""Part of the ``measure`` settings -> statistic -> what its error is; None: it is exact."""

ERROR_COLUMN: dict[str, str | None] = {
    name: None if error is None else f"{name}_{error}" for group in GROUPS.values() for name, error in group.items()
}
"""Statistic -> column of `trials` that holds its error."""

COLUMNS = tuple(column for pair in ERROR_COLUMN.items() for column in pair if column is not None)
"""Every column of `trials` that a built-in statistic may fill."""

OF_ENDPOINT = ("best_test_accuracy", "best_test_epoch")
"""Columns of `trials` that follow from all moments of a trial: the best test accuracy, and the first epoch with it."""
