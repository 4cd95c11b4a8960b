#!/usr/bin/env bash
# Sets this machine up (once) and trains. Arguments go to train_ddp.py, for example
#   ./run_train.sh --dataset_folder pairs --codec starter --prior pointer
# Without arguments: a demonstration on synthesised music, in demo/, that takes a few minutes.
#
# Under SLURM: sbatch run_train.sh --dataset_folder pairs … (docs/clusters.md). One machine with all its GPUs, unless
# options before the script's name say otherwise: sbatch --nodes=4 --time=24:00:00 run_train.sh …
#SBATCH --job-name=encore
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# train_under_slurm FLAGS…: one launcher per machine of the job. 120 s before the time limit SLURM sends SIGTERM, upon
# which training saves the step that it is at; the job is then put into the queue again and goes on from there.
train_under_slurm() {
    local command=("$here/.venv/bin/python" "$here/train_ddp.py") status=0 child
    if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
        command=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1
            --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --kill-on-bad-exit=0
            "${command[@]}" --nnodes "$SLURM_JOB_NUM_NODES")
    fi
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || set -- "$@" --resume auto
    "${command[@]}" "$@" &
    child=$!
    trap 'kill -TERM $child' TERM
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # the signal has ended `wait`, but not training
        status=0
        wait "$child" || status=$?
    done
    # Not after scancel or a preemption, which SLURM itself puts into the queue again.
    if [ "$status" = 143 ] && [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}

# SLURM runs a copy of this file from a folder of its own.
if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -e "$here/setup_venv.sh" ]; then
    batch=yes
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/run_train\.sh.*|\1|p')
    if [ ! -e "$here/setup_venv.sh" ]; then
        echo "error: run_train.sh: SLURM does not tell where Encore is; submit it by its path, as it is" >&2
        exit 2
    fi
fi

if [ $# -gt 0 ]; then
    # From the folder of the caller, so that the paths among the arguments mean what they say.
    "$here/setup_venv.sh"
    [ -z "${batch:-}" ] || train_under_slurm "$@"
    exec "$here/.venv/bin/python" "$here/train_ddp.py" "$@"
fi

cd "$here"
./setup_venv.sh
python=.venv/bin/python

[ -e demo/music/demo_11.wav ] || $python -m encore.data.demo demo/music
[ -e demo/pairs/metadata.csv ] || $python prepare_data.py demo/music --output demo/pairs \
    --context_seconds 4 --segment_seconds 4 --val_fraction 0.17 --test_fraction 0

ranks=()
if [ "$($python -c 'import torch; print(torch.cuda.device_count())')" = 0 ]; then
    ranks=(--world_size 2)
    # Two ranks share the cores; more threads than cores are slower than none.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}"
fi
train() {
    $python train_ddp.py --dataset_folder demo/pairs --codec starter --d_model 128 --num_layers 4 --batch_size 4 \
        --decode_seconds 0.8 --lr 3e-4 --warmup_steps 10 --dropout 0 --ema_decay 0.9 --num_workers 0 "${ranks[@]}" "$@"
}
train --objective energy --checkpoint_dir demo/checkpoints --run_name demo --epochs 10
# A regression on the same music, which learns the average of all futures: it shows what the energy distance is for.
train --objective regression --checkpoint_dir demo/regression --run_name demo_regression --epochs 10 \
    --loss_weight_target 0.5 --loss_weight_spectral 0.5 --loss_weight_mel 0.5

song=$(awk -F, '$4 ~ /val/ { print $2; exit }' demo/pairs/metadata.csv)
$python inference_sample.py --checkpoint demo/checkpoints/best_model.pt --input "demo/music/$song" --start 8 --seconds 8 \
    --candidates 3 --output demo/continuation
$python evaluate.py --checkpoint demo/checkpoints/best_model.pt --against regression=demo/regression/best_model.pt \
    --dataset_folder demo/pairs --long_items 0 --output demo/report

cat <<TEXT

The demonstration is done. What it made:
  demo/music                     synthesised music, cut into pairs in demo/pairs
  demo/checkpoints               the model: best_model.pt, last.pt, train.log; for comparison, a regression: demo/regression
  demo/report/index.html         both compared with a replay of the input, a loop and the truth: audio and tables
  demo/continuation/index.html   three continuations of $song
To compare runs:
  .venv/bin/python -m mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///mlflow.db
To train on your own music:
  .venv/bin/python prepare_data.py MUSIC_FOLDER --output pairs
  ./run_train.sh --dataset_folder pairs --codec starter --prior pointer
TEXT
