#!/usr/bin/env bash
# A pretraining run on nodes that ssh reaches, without a scheduler:
#   pretraining/launch/nodes.sh node1,node2 pretraining/launch/64gpu_ddp.yaml luna_base_16gb [name=value ...]
# All nodes see this folder under the same path, with its .venv. A run that fails is started again, three times at most: it goes
# on from its last checkpoint. Logs: logs/nodes/NODE.log.
set -uo pipefail

hosts=${1:?"usage: nodes.sh HOST[,HOST...] ACCELERATE_CONFIG RECIPE [name=value ...]"}
config=${2:?"the second argument is the configuration of accelerate launch"}
shift 2
IFS=, read -ra host <<<"$hosts"
here=$(pwd)
mkdir -p logs/nodes

for attempt in 1 2 3 4; do
    running=()
    for rank in "${!host[@]}"; do
        command="cd $(printf %q "$here") && source .venv/bin/activate && exec accelerate launch --config_file $(printf %q "$config") \
--num_machines ${#host[@]} --num_processes $((8 * ${#host[@]})) --machine_rank $rank --main_process_ip ${host[0]} \
--main_process_port 29400 -m pretraining.train $(printf '%q ' "$@")"
        ssh -tt "${host[$rank]}" "$command" </dev/null >>"logs/nodes/${host[$rank]}.log" 2>&1 &
        running+=($!)
    done
    trap 'kill -TERM "${running[@]}" 2>/dev/null; exit 143' TERM INT
    status=0
    for process in "${running[@]}"; do
        wait "$process" || status=$?
    done
    [ "$status" -eq 0 ] && exit 0
    echo "Attempt $attempt ended with status $status; the logs are in logs/nodes." >&2
done
exit "$status"
