#!/usr/bin/env bash
# A pretraining run on nodes that pdsh reaches by ssh, without a scheduler, by torchrun on each:
#   pretraining/launch/pdsh.sh node1,node2 ddp luna_base_16gb [--name value ...]
# The second argument is the engine: ddp, fsdp2, zero1, zero2 or zero3. All nodes see this folder under the same path, with its
# .venv. The nodes meet at the first one. A rank that dies ends all; as long as there are new checkpoints the command is then
# started again, three times at most. SIGTERM and Ctrl-C are passed on, and the run saves.
# Logs: logs/pdsh/ATTEMPT/NODE/.../RANK/stdout.log and stderr.log.
set -uo pipefail

hosts=${1:?"usage: pdsh.sh HOST[,HOST...] ENGINE RECIPE [--name value ...]"}
engine=${2:?"the second argument is the engine: ddp, fsdp2, zero1, zero2 or zero3"}
shift 2
case $engine in
    ddp) environment="" ;;
    fsdp2) environment="ACCELERATE_USE_FSDP=true FSDP_VERSION=2" ;;
    zero[123])
        environment="ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=$engine.json"
        ;;
    *)
        echo "error: the engine is $engine: choose ddp, fsdp2, zero1, zero2 or zero3." >&2
        exit 2
        ;;
esac
IFS=, read -ra host <<<"$hosts"
here=$(pwd)
env $environment WORLD_SIZE=$((8 * ${#host[@]})) python -m pretraining.train "$@" --plan || exit 2
folder=$(python -c 'import sys; from pretraining.recipe import load_recipe; print(load_recipe(*sys.argv[1:]).output_dir)' \
    "$@") || exit 2
newest() { ls "$folder/checkpoints" 2>/dev/null | sort | tail -n 1; }

stopped=
stop() {
    stopped=yes
    pdsh -R ssh -w "$hosts" "pkill -TERM -f 'torchrun --nnodes ${#host[@]} .*--rdzv_id luna-'"
}
trap stop TERM INT

for attempt in 0 1 2 3; do
    before=$(newest)
    pdsh -R ssh -S -w "$hosts" "cd $(printf %q "$here") && source .venv/bin/activate && mkdir -p logs/pdsh/$attempt/\$(hostname) && \
env $environment torchrun --nnodes ${#host[@]} --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint ${host[0]}:29400 \
--rdzv_id luna-$attempt --shutdown-timeout 110 --redirects 3 --log-dir logs/pdsh/$attempt/\$(hostname) \
-m pretraining.train $(printf '%q ' "$@")" &
    run=$!
    wait "$run"
    status=$?
    while kill -0 "$run" 2>/dev/null; do  # a signal ends `wait`, not the run
        wait "$run"
        status=$?
    done
    [ "$status" -eq 0 ] && exit 0
    echo "Attempt $attempt ended with status $status; the logs are in logs/pdsh/$attempt." >&2
    { [ -n "$stopped" ] || [ "$(newest)" = "$before" ]; } && exit "$status"
done
exit "$status"
