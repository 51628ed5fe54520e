-- Does only the ratio matter? A metric's mean by ratio and batch size, also relative to the ratio's smallest batch size.
-- $sweep: one sweep
-- $metric = lambda_max: a column of trials
-- $conditions: what else varies
--
-- If only lr / batch_size matters, `relative` is 1 throughout. `isoratio invariance` says whether it is.
WITH cells AS (
    SELECT *, mean / arg_min(mean, batch_size) OVER (PARTITION BY line) AS relative
    FROM cell_means(COLUMNS(lambda c: c = $metric))
    WHERE sweep = coalesce($sweep, sweep)
)
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size, lr, n, mean, standard_error, relative
FROM cells
ORDER BY ALL
