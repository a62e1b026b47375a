#!/usr/bin/env bash
# `peas fit` on machines without SLURM, or on one with several GPUs. On every machine the same line,
# but for ADDRESS where names are not known everywhere:
#
#   CONFIGS="configs/pretrain/audiomae.yaml" RUN=/shared/runs/audiomae NODES=2 HEAD=node1:29500 \
#       bash configs/cluster/torchrun.sh --data.init_args.root AUDIOSET
#
#   CONFIGS   config files, the later ones over the earlier ones
#   RUN       folder of the run, on a file system that all machines share
#   NODES     number of machines (1)
#   GPUS      processes on each, one a GPU (as many as there are)
#   HEAD      name and free port of one of the machines, known to all (localhost:29500)
#   ADDRESS   by which the others reach this machine, where its name will not do
#   RESTARTS  how often all ranks start again, from the last checkpoint, when one has failed (3)
#   OVERLAY   where it runs; empty = CONFIGS say it all, the number of devices too
#   PEAS      the command, such as "apptainer exec --nv peas.sif peas"
#   DOCTOR    1 = ask what the ranks see, and do not train
#
# Arguments of the script are passed to `peas fit`. Nothing is requeued: where
# machines come and go, restart this script on all of them, and the run resumes.
set -euo pipefail

: "${CONFIGS:?names no config: CONFIGS=\"configs/pretrain/audiomae.yaml\" RUN=runs/audiomae bash ...}"
: "${RUN:?names no folder: RUN=runs/audiomae, one for each run}"
NODES=${NODES:-1}
HEAD=${HEAD:-localhost:29500}
ADDRESS=${ADDRESS:-}
RESTARTS=${RESTARTS:-3}
OVERLAY=${OVERLAY-configs/overlays/ddp_nodes.yaml}
DOCTOR=${DOCTOR:-0}
GPUS=${GPUS:-gpu}
read -ra peas <<<"${PEAS:-peas}"
read -ra configs <<<"$CONFIGS"

arguments=()
for config in "${configs[@]}"; do
    arguments+=(--config "$config")
done
if [[ -n $OVERLAY ]]; then
    arguments+=(--config "$OVERLAY" --trainer.num_nodes "$NODES")
    arguments+=(--trainer.devices "${GPUS/gpu/auto}")
fi
arguments+=("$@" --trainer.default_root_dir "$RUN")

launch=(torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d --no-python)
launch+=(--rdzv-endpoint "$HEAD" --rdzv-id "peas-$(basename "$RUN")")
if [[ -n $ADDRESS ]]; then
    launch+=(--local-addr "$ADDRESS")
fi
if ((DOCTOR)); then
    exec "${launch[@]}" "${peas[@]}" doctor --cluster "${arguments[@]}"
fi
exec "${launch[@]}" --max-restarts "$RESTARTS" "${peas[@]}" fit "${arguments[@]}" --ckpt_path last
