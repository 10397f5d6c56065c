#!/usr/bin/env bash
# A pretraining run on SLURM, from the project's folder:
#   sbatch --nodes 8 pretraining/launch/slurm.sh pretraining/launch/64gpu_ddp.yaml luna_base_16gb [--name value ...]
# Two minutes before the time limit the run saves and the job is queued again, and so it is after a failure, as long as there are
# new checkpoints. Logs: luna-JOB.out; logs/JOB/RUN/node-N.log for each node, node-N/.../RANK/*.log for each rank.
#SBATCH --job-name=luna
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=luna-%j.out
set -uo pipefail

config=${1:?"usage: sbatch --nodes N slurm.sh ACCELERATE_CONFIG RECIPE [--name value ...]"}
shift
nodes=$SLURM_NNODES
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
logs=logs/$SLURM_JOB_ID/${SLURM_RESTART_COUNT:-0}
mkdir -p "$logs"
WORLD_SIZE=$((8 * nodes)) python -m pretraining.train "$@" --plan || exit 2
folder=$(python -c 'import sys; from pretraining.recipe import load_recipe; print(load_recipe(*sys.argv[1:]).output_dir)' \
    "$@") || exit 2
newest() { ls "$folder/checkpoints" 2>/dev/null | sort | tail -n 1; }
before=$(newest)

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110  # seconds that the ranks have to save after SIGTERM; 30 otherwise
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --output "$logs/node-%n.log" bash -c 'exec accelerate launch --config_file "$0" \
    --num_machines "$SLURM_NNODES" --num_processes $((8 * SLURM_NNODES)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip '"$first"' --main_process_port 29400 --tee 3 --log_dir '"$logs"'/node-$SLURM_NODEID \
    -m pretraining.train "$@"' "$config" "$@" &
step=$!
trap 'kill -TERM "$step"' TERM
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ends `wait`, not the step
    wait "$step"
    status=$?
done

if [ "$status" -ne 0 ] && [ "$(newest)" != "$before" ]; then
    echo "Exit status $status on $nodes nodes; the run goes on from $(newest) when the job starts again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
