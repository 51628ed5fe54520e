#!/bin/bash
# A sweep as a Slurm job: a Ray cluster on its nodes for as long as the sweep runs.
#
# 1. Start: the job makes its token, its cluster, runs the sweep, and takes the cluster away.
#      sbatch isoratio.sh
# 2. Look in, from any machine that reaches the store.
#      squeue --me
#      isoratio status --store results
# 3. Save running packs as they are, give the nodes back, and queue again:
#      scancel --batch --signal=USR1 JOB_ID
# 4. Away with it. What is committed stays; `sbatch` again goes on.
#      scancel JOB_ID

#SBATCH --job-name=isoratio
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
# Two minutes before its time is up the job is told to save what runs (25 s), and queues itself again.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=isoratio-%j.log

sweep=sweep.yaml
store=results

# What every node needs.
source /opt/venv/bin/activate

set -u
# What the nodes of this job share, for nobody else to read. It is gone when the job is done.
job="$SLURM_SUBMIT_DIR/.isoratio-$SLURM_JOB_ID"
(umask 077 && mkdir -p "$job")
rm -f "$job/driver.pid" "$job/exit-code" "$job/stop"
# Every request, also between nodes, shows this token.
test -s "$job/token" || (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$job/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$job/token" RAY_USAGE_STATS_ENABLED=0
export RAY_health_check_timeout_ms=5000 # a node that cannot be reached is given up within a minute
export job sweep store

# The launch, on the first node. Its exit code is what counts: 0 or 1 complete, 130 or 143 stopped.
cat >"$job/driver" <<'END'
trap : TERM # outlives a cancelled launch, to write down how it ended
bash -c 'echo $$ >"$job/driver.pid"; test -e "$job/stop" && exit 143; exec isoratio launch "$sweep" --store "$store" "$@"' \
  launch "$@"
code=$?
echo $code >"$job/exit-code"
echo "$(date -Is) the launch has ended with exit code $code"
END

# One node: the launch starts a Ray of its own, beside those of other jobs.
bash "$job/driver" &
step=$!

stopping=
save() {
  echo "$(date -Is) told to save and to queue again"
  stopping=yes
  touch "$job/stop"
  if test -s "$job/driver.pid"; then kill -TERM "$(cat "$job/driver.pid")"; fi
}
trap save USR1
trap stopping= TERM # cancelled: Slurm has told all processes; this one waits for them, and does not come again

while kill -0 "$step" 2>/dev/null; do
  wait "$step"
done
code=$(cat "$job/exit-code" 2>/dev/null) || code=${stopping:+143} # told to save before it began
code=${code:-1}

case $code in 0 | 1 | 2 | 3 | 4) stopping= ;; esac # complete, or what a person has to mend
if test "$stopping" && test "${SLURM_RESTART_COUNT:-0}" -lt "${ISORATIO_REQUEUES:-100}"; then
  echo "$(date -Is) the sweep is not complete: queued again"
  scontrol requeue "$SLURM_JOB_ID"
  exit "$code"
fi
rm -rf "$job"
exit "$code"
