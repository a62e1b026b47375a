#!/usr/bin/env bash
# `peas fit` under SLURM: several nodes, pre-emption, arrays of folds and seeds. From the checkout:
#
#   CONFIGS="configs/pretrain/audiomae.yaml" RUN=runs/audiomae \
#       sbatch --nodes 4 configs/cluster/slurm.sh --data.init_args.root AUDIOSET
#   CONFIGS="configs/finetune/esc50_peas_1x1.yaml" RUN=runs/esc50 FOLDS="1 2 3 4 5" SEEDS="0 1 2" \
#       sbatch --array 0-14 --nodes 1 configs/cluster/slurm.sh --data.init_args.root ESC-50
#
#   CONFIGS   config files, the later ones over the earlier ones
#   RUN       folder of the run, on a file system that all nodes share; of an array, of its runs
#   OVERLAY   where it runs; empty = CONFIGS say it all, the number of devices too
#   FOLDS, SEEDS   of an array: task i is fold i modulo their number, then the next seed
#   PEAS      the command, such as "apptainer exec --nv peas.sif peas"
#   DOCTOR    1 = ask what the ranks see, and do not train
#
# Arguments of the script are passed to `peas fit`.
#SBATCH --job-name=peas
#SBATCH --output=peas-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Back into the queue when pre-empted; the log continues.
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end: the run saves itself, and asks for the job to be queued again.
#SBATCH --signal=SIGUSR1@300
set -euo pipefail

: "${CONFIGS:?names no config: CONFIGS=\"configs/pretrain/audiomae.yaml\" RUN=runs/audiomae sbatch ...}"
: "${RUN:?names no folder: RUN=runs/audiomae, one for each run}"
OVERLAY=${OVERLAY-configs/overlays/ddp_nodes.yaml}
FOLDS=${FOLDS:-}
SEEDS=${SEEDS:-}
DOCTOR=${DOCTOR:-0}
read -ra peas <<<"${PEAS:-peas}"
read -ra configs <<<"$CONFIGS"
read -ra folds <<<"$FOLDS"
read -ra seeds <<<"$SEEDS"

arguments=()
for config in "${configs[@]}"; do
    arguments+=(--config "$config")
done
if [[ -n $OVERLAY ]]; then
    arguments+=(--config "$OVERLAY")
    arguments+=(--trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE")
fi
arguments+=("$@")

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    # One of folds and seeds may be left out. Folders are named as `peas kfold` names them.
    many=$((${#folds[@]} > 0 ? ${#folds[@]} : 1))
    jobs=$((many * (${#seeds[@]} > 0 ? ${#seeds[@]} : 1)))
    if ((SLURM_ARRAY_TASK_ID >= jobs)); then
        echo "array task $SLURM_ARRAY_TASK_ID: FOLDS x SEEDS are $jobs runs, so --array 0-$((jobs - 1))" >&2
        exit 1
    fi
    seed=${seeds[SLURM_ARRAY_TASK_ID / many]:-0}
    arguments+=(--seed_everything "$seed")
    name=seed$seed
    if ((${#folds[@]} > 0)); then
        fold=${folds[SLURM_ARRAY_TASK_ID % many]}
        arguments+=(--data.init_args.fold "$fold")
        name=fold${fold}_seed$seed
    fi
    RUN=$RUN/$name
elif [[ -n $FOLDS$SEEDS ]]; then
    echo "FOLDS and SEEDS are of an array: sbatch --array 0-N" >&2
    exit 1
fi
arguments+=(--trainer.default_root_dir "$RUN")

# One task a GPU. srun no longer takes the CPUs of a task from sbatch by itself. A rank that is gone
# leaves the others five minutes to end, the first rank to ask for its requeue among them.
launch=(srun --wait=300 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}")
if ((DOCTOR)); then
    exec "${launch[@]}" "${peas[@]}" doctor --cluster "${arguments[@]}"
fi
exec "${launch[@]}" "${peas[@]}" fit "${arguments[@]}" --ckpt_path last
