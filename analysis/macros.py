"""Macros that make questions to the store short, on every connection of :mod:`analysis.sql`."""

from __future__ import annotations

from analysis.database import CONFIGURATION, quoted
from trainables.trial import AGAIN

CONDITIONS = [c for c in CONFIGURATION if c not in {"lr", "batch_size", "ratio", "seed", "order_seed"}]
"""Configuration that is neither learning rate nor batch size nor seed: what verdicts group by."""

_SAME = ", ".join(map(quoted, ["sweep", *CONDITIONS]))

# One mention of the metric, so that it may be COLUMNS(...). What is not finite would turn every mean into NaN.
_VALUED = f"""measured AS (
        SELECT *, metric AS measured_value, hash({_SAME}, ratio) AS line FROM trials
        WHERE NOT is_again(seed, order_seed)
    ), valued AS (
        SELECT *, CASE WHEN status = 'finished' AND isfinite(measured_value::DOUBLE) THEN measured_value::DOUBLE END
            AS metric_value
        FROM measured
    )"""

MACROS = f"""
CREATE MACRO is_again(seed, order_seed) AS coalesce(order_seed = xor(seed, {AGAIN}), false);
COMMENT ON MACRO is_again IS 'an A/A trial: another one again with another order of examples; see controls';

CREATE MACRO iso_ratio(lr, batch_size) AS format('{{:.9g}}', lr / batch_size)::DOUBLE;
COMMENT ON MACRO iso_ratio IS 'lr / batch_size to 9 digits, as in the column ratio: equal for all of a line';

CREATE MACRO standard_error(x) AS stddev_samp(x) / sqrt(count(x));
COMMENT ON MACRO standard_error IS 'standard error of the mean, with n - 1 degrees of freedom; NULL for one value';

CREATE MACRO wilson(k, n) AS {{
    'low': greatest(0, (k + 1.9207 - 1.96 * sqrt(k * (n - k) / n + 0.9604)) / (n + 3.8416)),
    'high': least(1, (k + 1.9207 + 1.96 * sqrt(k * (n - k) / n + 0.9604)) / (n + 3.8416))
}};
COMMENT ON MACRO wilson IS '95% interval (low, high) of a share of which k of n were seen (Wilson 1927)';

CREATE MACRO cell_means(metric) AS TABLE
    WITH {_VALUED}
    SELECT {_SAME}, ratio, batch_size, lr, line,
        count(*) AS n_trials, count(*) FILTER (status = 'diverged') AS n_diverged,
        count(metric_value) AS n, avg(metric_value) AS mean, standard_error(metric_value) AS standard_error
    FROM valued GROUP BY ALL;
COMMENT ON MACRO TABLE cell_means IS
    'mean over seeds of an expression in columns of trials, per cell; a line has one ratio under the same conditions';

CREATE MACRO line_contrasts(metric) AS TABLE
    WITH {_VALUED}, lines AS (
        FROM valued SELECT *, min(batch_size) OVER (PARTITION BY line) AS reference_batch_size
    ), paired AS (
        FROM lines SELECT *, max(metric_value) FILTER (batch_size = reference_batch_size)
            OVER (PARTITION BY line, seed, order_seed) AS reference
    )
    SELECT {_SAME}, ratio, batch_size, lr, line, reference_batch_size, seed, metric_value AS value, reference,
        metric_value - reference AS difference
    FROM paired WHERE batch_size > reference_batch_size;
COMMENT ON MACRO TABLE line_contrasts IS
    'per seed: an expression in columns of trials, minus its value at the smallest batch size of equal ratio';
"""
