-- A map of learning rate by batch size: mean of a metric, with a bar from the smallest cell to the largest.
-- $sweep: one sweep
-- $metric = test_accuracy: a column of trials
-- $conditions: what else varies
SELECT COLUMNS(lambda c: list_contains($conditions, c)), lr, batch_size, n_diverged, mean,
    bar(mean, min(mean) OVER (PARTITION BY sweep), max(mean) OVER (PARTITION BY sweep), 24) AS bar
FROM cell_means(COLUMNS(lambda c: c = $metric))
WHERE sweep = coalesce($sweep, sweep)
ORDER BY ALL
