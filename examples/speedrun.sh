#!/usr/bin/env bash
# From a folder of music to labels, a trained model and the table of its probes, without network:
#
#     examples/speedrun.sh MUSIC OUT [PROBES]
#
# About an hour on two cores, about ten minutes on one GPU. Run again after an interruption, it goes on; what
# each part took is printed, and kept in OUT/speedrun.log. PROBES is a folder of tasks (`overtone probe`).
# In the environment: PYTHON, SEED, LABELS_CONFIG, TRAIN_CONFIG, and, as words, LABELS_ARGS, TRAIN_ARGS,
# PROBE_ARGS.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "speedrun: give a folder of music and one to write to: $0 MUSIC OUT [PROBES]" >&2
    exit 2
fi
music=$(realpath "$1") out=$(realpath -m "$2") probes=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
seed=${SEED:-0} labels=$out/labels run=$out/run
mkdir -p "$out"

has() { "$python" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$1'))"; }

part() { # NAME COMMAND…: runs it, and notes its wall clock
    local name=$1 since=$SECONDS
    shift
    echo "== $name: $*"
    "$@"
    printf '%-8s %5d s  %s\n' "$name" $((SECONDS - since)) "$(date -Is)" >> "$out/speedrun.log"
    tail -n 1 "$out/speedrun.log"
}

# One GPU: both label stages share it, and 24M parameters see some hundred hours of crops.
# Two cores: 10M parameters, whose settings are in the file.
label_options=() train_options=() config=configs/pretrain/small.yaml
machine="$(nproc) cores"
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
if [ -n "$gpu" ]; then
    machine="$gpu, $machine"
    label_options+=(--set run.pools.codes.gpus=0.5 --set run.pools.cqt.gpus=0.5)
    config=configs/pretrain/ladder/22m.yaml
    train_options+=(
        --set optim.updates=4000 --set optim.warmup_updates=200 --set optim.global_batch=96
        --set engine.micro_batch=96 --set engine.precision=bf16 --set engine.compile=true
        --set checkpoints.every_updates=1000 --set watch.validate_every=1000
    )
fi
train=("$python" -m pipeline train)
if ! has ray; then # the same stages in plain processes, and one rank in this one
    label_options+=(--plain)
    train=("$python" -m stages.pretrain)
fi
if ! has tensorboard; then train_options+=(--set watch.tensorboard=false); fi
read -ra label_more <<< "${LABELS_ARGS:-}"
read -ra train_more <<< "${TRAIN_ARGS:-}"
read -ra probe_more <<< "${PROBE_ARGS:-}"

begun=$SECONDS
part labels "$python" -m pipeline labels "${LABELS_CONFIG:-configs/labels/mel_rvq.yaml}" --audio "$music" \
    --out "$labels" ${label_options[@]+"${label_options[@]}"} ${label_more[@]+"${label_more[@]}"}
part training "${train[@]}" "${TRAIN_CONFIG:-$config}" \
    --set "data.corpora=[\"$labels\"]" --set "run.dir=\"$out\"" --set run.name=run --set "run.seed=$seed" \
    ${train_options[@]+"${train_options[@]}"} ${train_more[@]+"${train_more[@]}"}
if [ -n "$probes" ]; then
    part probes "$python" -m pipeline probe "$run" --tasks "$probes" ${probe_more[@]+"${probe_more[@]}"}
else
    echo "no PROBES folder was given: the model is not probed"
fi
printf '%-8s %5d s  %s, commit %s, seed %s\n' total $((SECONDS - begun)) "$machine" \
    "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)" "$seed" | tee -a "$out/speedrun.log"
