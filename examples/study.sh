#!/usr/bin/env bash
# The small study of docs/results.md on two cores, in pieces that go on where they stopped:
#
#   examples/study.sh US8K ESC50 FSDD FEATURES [PIECE...]
#
# US8K: UrbanSound8K, or a part of it, with a clips.csv, without ESC-10's recordings. ESC50: ESC-50, or
# its ESC-10 part. FSDD: the Free Spoken Digit Dataset. FEATURES: EfficientAT's maps of US8K
# (urbansound8k_part.npz) and embeddings of ESC-10 (esc10.npz). Pieces, all by default:
#
#   targets   the teacher's maps as a cache
#   systems   the five systems, and SupMAM's four rows with three pretraining seeds
#   frozen    kNN and linear probe of each on ESC-10, and the curves of pretraining
#   esc       random, PEAS and energy on ESC-10, five folds and three seeds
#   fsdd      the same on six speakers left out in turn, one seed
#
# Everything is written to runs/study. Two runs of one thread each go on at once. `peas` and `python` must be
# those of the environment: PATH=$PWD/.venv/bin:$PATH.
set -euo pipefail
if [ $# -lt 4 ]; then sed -n 2,18p "$0"; exit 2; fi
us8k=$(realpath "$1") esc=$(realpath "$2") fsdd=$(realpath "$3") features=$(realpath "$4")
shift 4
pieces=${*:-targets systems frozen esc fsdd}
here=$(dirname "$0")
out=runs/study
export OMP_NUM_THREADS=1
mkdir -p "$out"

pretrain() { # name, config, seed, further arguments
    local name=$1 config=$2 seed=$3
    shift 3
    local run="$out/pretrain/$name-$seed"
    if [ -f "$run/done" ]; then return; fi
    mkdir -p "$run"
    peas fit --config "$here/../configs/examples/pretrain_urbansound8k_$config.yaml" \
        --seed_everything "$seed" --trainer.default_root_dir "$run" \
        --data.init_args.root "$us8k" "$@" --ckpt_path last >>"$run/log.txt" 2>&1
    touch "$run/done"
    echo "$run: done"
}

systems() { # each line is a run; two go on at once
    {
        echo ssast ssast 0
        for seed in 0 1 2; do
            echo rec80 audiomae $seed
            echo rec_cls40 supmam $seed
            echo rec40 audiomae $seed --model.init_args.masking.init_args.ratio 0.4
            echo cls40 supmam $seed --model.init_args.objectives.reconstruction null --model.init_args.objectives.classification.init_args.weight 1
        done
        echo mam_efficientat mam_teacher 0 --model.init_args.objectives.distillation.init_args.targets $out/targets
        echo supmam_efficientat supmam_teacher 0 --model.init_args.objectives.distillation.init_args.targets $out/targets
    } | xargs -P 2 -L 1 bash -c 'pretrain "$@"' pretrain
}

frozen() {
    local named=()
    for run in "$out"/pretrain/*-[0-9]; do
        local name=${run##*/}
        named+=("${name%-*}=$run/checkpoints/last.ckpt")
    done
    python "$here/frozen_features.py" "$esc" "${named[@]}" \
        --teacher "$features/esc10.npz" --out "$out/frozen"
    local run="$out/pretrain"
    python "$here/loss_curves.py" SSAST="$run/ssast-0" AudioMAE="$run/rec80-0" \
        SupMAM="$run/rec_cls40-0" "MAM, EfficientAT=$run/mam_efficientat-0" \
        "SupMAM, EfficientAT=$run/supmam_efficientat-0" --out "$out/curves.png"
}

arms() { # esc10 or fsdd, cluster, folds, seeds, further arguments
    local set=$1 cluster=$2 folds=$3 seeds=$4
    shift 4
    local named=()
    for arm in random peas energy; do
        peas kfold --config "$here/../configs/examples/${set}_mini_$arm.yaml" --parallel 2 \
            --folds "$folds" --seeds "$seeds" --out "$out/arms/${set}_$arm" \
            --model.init_args.pretrained "$out/pretrain/ssast-0/checkpoints/last.ckpt" "$@"
        named+=("$arm=$out/arms/${set}_$arm")
    done
    local test=()
    # Six speakers cannot come below p = 0.03 by flipping signs, so there the means are compared by t.
    if [ "$cluster" = fsdd ]; then test=(--test t); fi
    python "$here/compare_arms.py" --cluster "$cluster" "${test[@]}" "${named[@]}" --out "$out/$set.md"
}

export -f pretrain
export out here us8k
for piece in $pieces; do
    case $piece in
    targets)
        peas data targets folder "$us8k" --csv clips.csv --from "$features/urbansound8k_part.npz" \
            --extent "$here/efficientat_extent.json" --out "$out/targets"
        ;;
    systems) systems ;;
    frozen) frozen ;;
    esc) arms esc10 esc 1-5 0-2 --data.init_args.root "$esc" ;;
    fsdd)
        python "$here/fsdd.py" "$fsdd" --out "$out/fsdd.csv"
        arms fsdd fsdd 1-6 0 --data.init_args.root "$fsdd" --data.init_args.csv "$PWD/$out/fsdd.csv"
        ;;
    *)
        echo "no piece $piece: targets, systems, frozen, esc or fsdd" >&2
        exit 2
        ;;
    esac
done
