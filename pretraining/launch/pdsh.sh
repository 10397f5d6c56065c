#!/usr/bin/env bash
# A pretraining run on nodes that pdsh reaches by ssh, without a scheduler, by torchrun on each:
#   pretraining/launch/pdsh.sh node1,node2 ddp luna_base_16gb [name=value ...]
# The second argument is the engine: ddp, fsdp2, zero1, zero2 or zero3. All nodes see this folder under the same path, with its
# .venv. The nodes meet at the first one. A rank that dies ends all; the command is then started again, three times at most, and
# the run goes on from its last checkpoint. Logs: logs/pdsh/ATTEMPT/NODE/.../RANK/stdout.log and stderr.log.
set -uo pipefail

hosts=${1:?"usage: pdsh.sh HOST[,HOST...] ENGINE RECIPE [name=value ...]"}
engine=${2:?"the second argument is the engine: ddp, fsdp2, zero1, zero2 or zero3"}
shift 2
case $engine in
    ddp) environment="" ;;
    fsdp2) environment="ACCELERATE_USE_FSDP=true FSDP_VERSION=2" ;;
    zero[123])
        environment="ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=pretraining/launch/$engine.json"
        ;;
    *)
        echo "error: the engine is $engine: choose ddp, fsdp2, zero1, zero2 or zero3." >&2
        exit 2
        ;;
esac
IFS=, read -ra host <<<"$hosts"
here=$(pwd)

for attempt in 0 1 2 3; do
    pdsh -R ssh -S -w "$hosts" "cd $(printf %q "$here") && source .venv/bin/activate && mkdir -p logs/pdsh/$attempt/\$(hostname) && \
env $environment torchrun --nnodes ${#host[@]} --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint ${host[0]}:29400 \
--rdzv_id luna-$attempt --shutdown-timeout 110 --redirects 3 --log-dir logs/pdsh/$attempt/\$(hostname) -m pretraining.train $(printf '%q ' "$@")"
    status=$?
    [ "$status" -eq 0 ] && exit 0
    echo "Attempt $attempt ended with status $status; the logs are in logs/pdsh/$attempt." >&2
done
exit "$status"
