-- What took the time? Packs, slowest first, with the time of a trial and of a step.
-- $sweep: one sweep
SELECT sweep, pack_id, arch, batch_size, engine, device, count(*) AS n_trials, max(together) AS together,
    sum(seconds) AS seconds, avg(seconds) AS seconds_per_trial, 1e6 * sum(seconds) / sum(steps) AS microseconds_per_step
FROM trials
WHERE sweep = coalesce($sweep, sweep)
GROUP BY ALL
ORDER BY seconds DESC, pack_id
