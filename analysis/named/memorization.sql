-- What is learned of wrong labels? Share of the changed labels that are predicted as given, beside test accuracy.
-- $sweep: one sweep
-- $conditions: what else varies
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size, count(memorized) AS n,
    avg(memorized) AS memorized, standard_error(memorized) AS memorized_se,
    avg(train_accuracy) AS train_accuracy, avg(test_accuracy) AS test_accuracy,
    standard_error(test_accuracy) AS test_accuracy_se
FROM trials
WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND label_noise > 0 AND status = 'finished'
GROUP BY ALL
ORDER BY ALL
