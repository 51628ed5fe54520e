-- The Hessian's stored eigenvalues over training: mean by ratio, epoch and index (0 is the largest, -1 the smallest).
-- $sweep: one sweep
-- $conditions: what else varies
--
-- n trials had a finite value; largest_residual bounds how far any of them is from a true eigenvalue.
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, epoch, index, count(*) AS n,
    avg(eigenvalue) AS eigenvalue, standard_error(eigenvalue) AS standard_error, max(residual) AS largest_residual
FROM eigenvalues JOIN trials USING (sweep, trial_id)
WHERE sweep = coalesce($sweep, sweep) AND NOT is_again(seed, order_seed) AND isfinite(eigenvalue)
GROUP BY ALL
ORDER BY ALL
