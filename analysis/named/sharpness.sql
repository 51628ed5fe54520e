-- Does sharpness go with generalization? Correlations of log lambda_max with test accuracy and with the loss gap.
-- $sweep: one sweep
-- $conditions: what else varies
--
-- `within_ratio` correlates what is left after each ratio's mean is taken off: what the ratio itself does to both is gone then.
-- A correlation over trials is no proof that one causes the other, and trials of one seed are not independent.
WITH sharp AS (
    SELECT *, ln(lambda_max) AS log_lambda, row(*COLUMNS(lambda c: list_contains($conditions, c)), ratio) AS line
    FROM trials
    WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND status = 'finished' AND lambda_max > 0
), centred AS (
    SELECT *, log_lambda - avg(log_lambda) OVER (PARTITION BY line) AS d_lambda,
        test_accuracy - avg(test_accuracy) OVER (PARTITION BY line) AS d_accuracy,
        loss_gap - avg(loss_gap) OVER (PARTITION BY line) AS d_gap
    FROM sharp
)
SELECT COLUMNS(lambda c: list_contains($conditions, c)), count(*) AS n,
    corr(log_lambda, test_accuracy) AS test_accuracy, corr(d_lambda, d_accuracy) AS test_accuracy_within_ratio,
    corr(log_lambda, loss_gap) AS loss_gap, corr(d_lambda, d_gap) AS loss_gap_within_ratio
FROM centred
GROUP BY ALL
ORDER BY ALL
