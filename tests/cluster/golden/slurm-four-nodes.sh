#!/bin/bash
# A sweep as a Slurm job: a Ray cluster on its nodes for as long as the sweep runs.
#
# 1. Start: the job makes its token, its cluster, runs the sweep, and takes the cluster away.
#      sbatch isoratio.sh
# 2. Look in, from any machine that reaches the store.
#      squeue --me
#      isoratio status --store "$HOME"/'my results'
# 3. Save running packs as they are, give the nodes back, and queue again:
#      scancel --batch --signal=USR1 JOB_ID
# 4. Away with it. What is committed stays; `sbatch` again goes on.
#      scancel JOB_ID

#SBATCH --job-name=isoratio
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
# Whole nodes: `ray symmetric-run` refuses a node on which a Ray runs, and ends every Ray of yours when it is done.
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=a100:8
#SBATCH --partition=gpu,long
#SBATCH --account=physics
#SBATCH --time=2-00:00:00
# Two minutes before its time is up the job is told to save what runs (25 s), and queues itself again.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=isoratio-%j.log

sweep='it'"'"'s a sweep.yaml'
store="$HOME"/'my results'

# What every node needs.
module load cuda/12.4
eval 'source "$HOME/my env/bin/activate"'

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
echo "$(date -Is) the launch has ended with exit code $code; what Ray says from here on is about its own end"
END

# Ports of this job's own.
port=$((20000 + 3 * (SLURM_JOB_ID % 4000)))
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
# The first node's address, which is not the loopback that some nodes have for their own name.
name=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1)
host=$(getent ahostsv4 "${name:-$(hostname)}" | awk '$1 !~ /^127\./ { print $1; exit }')
export port host="${host:-$(hostname -I | awk '{ print $1 }')}"

# What runs on every node. The first one runs the launch; the others end when it has ended.
cat >"$job/node" <<'END'
cancelled=
trap 'cancelled=yes' TERM # outlives Ray, to take away what it leaves
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID.$SLURM_NODEID"
rm -rf "$RAY_TMPDIR" && mkdir -m 700 "$RAY_TMPDIR" || exit 1
ray symmetric-run --address "$host:$port" --min-nodes 4 --num-cpus "$SLURM_CPUS_ON_NODE" \
  --dashboard-host 127.0.0.1 --dashboard-port $((port + 1)) --ray-client-server-port $((port + 2)) \
  --temp-dir "$RAY_TMPDIR/ray" \
  -- bash "$job/driver" --address "$host:$port" &
while kill -0 $! 2>/dev/null; do
  sleep 2
  if test "$SLURM_NODEID" != 0 && test -e "$job/exit-code"; then
    pkill -P $! || kill $! # ends the `ray start` that waits there, and with it the Ray of this node
    break
  fi
done
wait $!
test -z "$cancelled" || ray stop # which `ray symmetric-run` no longer could
# No launch, no success: the first node could not start it.
test "$SLURM_NODEID" != 0 || test -e "$job/exit-code" || test -e "$job/stop" || echo 1 >"$job/exit-code"
rm -rf "$RAY_TMPDIR"
END
srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --export=ALL --cpu-bind=none --kill-on-bad-exit=0 \
  --wait=0 bash "$job/node" &
step=$!

stopping=
save() {
  echo "$(date -Is) told to save and to queue again"
  stopping=yes
  touch "$job/stop"
  if test -s "$job/driver.pid"; then kill -TERM "$(cat "$job/driver.pid")"; else kill -TERM "$step"; fi
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
