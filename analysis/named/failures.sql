-- What went wrong? Failed trials by the last line of their error, with one of each to look into.
-- $sweep: one sweep
--
-- `isoratio run SWEEP TRIAL_ID` trains one again in the open; `isoratio resume SWEEP` tries all of them again.
SELECT sweep, string_split(rtrim(error, chr(10)), chr(10))[-1] AS problem, count(*) AS n_trials,
    min(trial_id) AS for_example, min(lr) AS lr_from, max(lr) AS lr_to
FROM trials
WHERE sweep = coalesce($sweep, sweep) AND status = 'failed'
GROUP BY ALL
ORDER BY n_trials DESC, problem
