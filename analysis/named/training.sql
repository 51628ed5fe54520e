-- A statistic over training: mean by ratio, batch size and epoch.
-- $sweep: one sweep
-- $metric = test_loss: a statistic of curves
-- $conditions: what else varies
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size, epoch, count(*) AS n,
    avg(value) AS mean, standard_error(value) AS standard_error
FROM curves JOIN trials USING (sweep, trial_id)
WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND statistic = $metric AND isfinite(value)
GROUP BY ALL
ORDER BY ALL
