-- Where does training diverge? Share of diverged trials by learning rate and batch size, with its 95% interval (Wilson).
-- $sweep: one sweep
-- $conditions: what else varies
--
-- `stability` is lr * lambda_max / 2 of the trials that survived: gradient descent on a quadratic stops converging at 1.
SELECT COLUMNS(lambda c: list_contains($conditions, c)), lr, batch_size, count(*) AS n,
    count(*) FILTER (status = 'diverged') AS n_diverged,
    n_diverged / n AS share, wilson(n_diverged, n).low AS share_low, wilson(n_diverged, n).high AS share_high,
    median(stability) FILTER (status = 'finished') AS stability
FROM trials
WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND status IN ('finished', 'diverged')
GROUP BY ALL
ORDER BY ALL
