# Runs the far side of a command with the Python of this Ray's workers, which need not be the first on PATH: what the
# raylet, an ancestor of this job, was told to start them with.
python=python3
pid=$$
while [ "${pid:-0}" -gt 1 ] && [ -r "/proc/$pid/cmdline" ]; do
    found=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
    if [ -x "$found" ]; then
        python=$found
        break
    fi
    pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
exec "$python" -m orchestrator.job "$@"
