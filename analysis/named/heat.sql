-- A map of learning rate by batch size: mean of a metric, with a bar from the smallest cell to the largest.
-- $sweep: one sweep
-- $metric = test_accuracy: a column of trials
-- $conditions: what else varies
--
-- Each map, that of one sweep under one set of conditions, has a scale of its own.
WITH cells AS (
    SELECT *, hash(*COLUMNS(lambda c: list_contains($conditions, c))) AS map
    FROM cell_means(COLUMNS(lambda c: c = $metric))
    WHERE sweep = coalesce($sweep, sweep)
)
SELECT COLUMNS(lambda c: list_contains($conditions, c)), lr, batch_size, n_diverged, mean,
    bar(mean, min(mean) OVER (PARTITION BY map), max(mean) OVER (PARTITION BY map), 24) AS bar
FROM cells
ORDER BY ALL
