-- How far is it? Planned trials by what varies and by status; `isoratio status` has the rate and the time left.
-- $sweep: one sweep
-- $conditions: what else varies
SELECT COLUMNS(lambda c: list_contains($conditions, c)), batch_size, count(*) AS planned,
    count(*) FILTER (status = 'finished') AS finished, count(*) FILTER (status = 'diverged') AS diverged,
    count(*) FILTER (status = 'failed') AS failed, count(*) FILTER (status = 'running') AS running,
    count(*) FILTER (status = 'pending') AS pending
FROM plan
WHERE sweep = coalesce($sweep, sweep)
GROUP BY ALL
ORDER BY ALL
