-- How far do seeds lie apart? Spread of a metric in each cell, and the seed farthest from the median.
-- $sweep: one sweep
-- $metric = lambda_max: a column of trials
-- $conditions: what else varies
--
-- `distance` is in median absolute deviations, of which one is 0.67 standard deviations of a normal law: above 5 is an outlier.
WITH measured AS (
    SELECT *, COLUMNS(lambda c: c = $metric) AS metric_value,
        row(*COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size) AS cell
    FROM trials
    WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND status = 'finished'
), spread AS (
    SELECT *, abs(metric_value - median(metric_value) OVER (PARTITION BY cell)) AS off,
        mad(metric_value) OVER (PARTITION BY cell) AS deviation
    FROM measured
    WHERE isfinite(metric_value)
)
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size, count(*) AS n,
    avg(metric_value) AS mean, stddev_samp(metric_value) AS sd, min(metric_value) AS lowest, max(metric_value) AS highest,
    arg_max(seed, off) AS farthest_seed, max(off / nullif(deviation, 0)) AS distance
FROM spread
GROUP BY ALL
ORDER BY ALL
