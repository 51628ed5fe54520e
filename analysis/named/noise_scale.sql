-- Is the batch small against the gradient's noise? B_simple = tr C / |G|^2 at the endpoint, and batch_size / B_simple.
-- $sweep: one sweep
-- $conditions: what else varies
--
-- McCandlish et al. 2018 (arXiv 1812.06162): below B_simple a larger batch saves steps, above it saves little.
SELECT COLUMNS(lambda c: list_contains($conditions, c)), ratio, batch_size, n, mean AS noise_scale, standard_error,
    batch_size / mean AS batch_size_in_noise_scales
FROM cell_means(noise_scale)
WHERE sweep = coalesce($sweep, sweep)
ORDER BY ALL
