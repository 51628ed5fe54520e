-- Where do the rows come from? Trials by code revision, versions and machine.
-- $sweep: one sweep
--
-- More than one row for a sweep means that its trials differ in origin; `SELECT * FROM provenance` has all columns.
SELECT sweep, revision, isoratio, torch, numpy, machine, cpu, provenance.device, deterministic, dataset_sha256,
    count(*) AS n_trials
FROM trials LEFT JOIN provenance USING (provenance_id)
WHERE sweep = coalesce($sweep, sweep)
GROUP BY ALL
ORDER BY ALL
