-- Up to which learning rate? The largest relative change along a line of equal ratio, by learning rate.
-- $sweep: one sweep
-- $metric = lambda_max: a column of trials
-- $conditions: what else varies
--
-- Each cell is compared, seed by seed, with the smallest batch size of its ratio; of each learning rate the cell is shown that
-- differs most, as a share of the reference, with its standard error. `isoratio invariance` gives the frontier, tested.
WITH contrasts AS (
    SELECT COLUMNS(lambda c: list_contains($conditions, c)), row(*COLUMNS(lambda c: list_contains($conditions, c))) AS condition,
        lr, ratio, batch_size, count(difference) AS n, avg(difference) / avg(reference) AS change,
        standard_error(difference) / abs(avg(reference)) AS standard_error
    FROM line_contrasts(COLUMNS(lambda c: c = $metric))
    WHERE sweep = coalesce($sweep, sweep)
    GROUP BY ALL
)
SELECT * EXCLUDE (condition) FROM contrasts
QUALIFY 1 = row_number() OVER (PARTITION BY condition, lr ORDER BY abs(change) DESC NULLS LAST)
ORDER BY ALL
