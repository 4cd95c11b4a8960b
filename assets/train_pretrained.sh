#!/usr/bin/env bash
# Trains the model that Encore comes with (encore/pretrained): assets/train_pretrained.sh MUSIC OUTPUT
# MUSIC: a folder with the recordings that docs/pretrained_model.md lists, by these names, at any depth. OUTPUT: a new folder.
# Makes OUTPUT/pairs, OUTPUT/checkpoints, OUTPUT/report and OUTPUT/model. Stopped, the same command goes on.
set -euo pipefail
music=$(realpath "${1:?MUSIC OUTPUT}") output=${2:?MUSIC OUTPUT} here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run() { "$here/.venv/bin/python" "$here/$1" "${@:2}"; }
export OMP_NUM_THREADS=1

# What was held out when the starter codec was trained is held out here, and four collections with nothing in train.
val=(waterworks Medieval_Victory_Theme mythica Next_to_You Groovin_Boyko)
test=(Pressure boss_storm_sovereign skyward_storm Downtown_Boogie_Teoh shrine_OGA_yd Battle_lost_OGA_Mumu Searching_yd
    The_9th_Circle_V2 Party_Sector)
left_out='arovane_beats|loops|ambient_guitar_bass|drum_hits|.*_notes' # samples in no musical order

if [ ! -e "$output/pairs/metadata.csv" ]; then
    mkdir -p "$output/music/train" "$output/music/val" "$output/music/test"
    find "$music" -type f -regextype posix-extended -not -regex ".*/($left_out)\.[^./]*" |
        while read -r file; do
            name=$(basename "${file%.*}") split=train
            [[ " ${val[*]} " != *" $name "* ]] || split=val
            [[ " ${test[*]} " != *" $name "* ]] || split=test
            ln -sf "$file" "$output/music/$split/"
        done
    # Three folders of 30, 5 and 9 recordings that are long enough: these shares make a split of each.
    run prepare_data.py "$output/music" --output "$output/pairs" --context_seconds 16 --segment_seconds 8 \
        --hop_seconds 4 --val_fraction 0.1136 --test_fraction 0.2045 --val_group folder --augment 1 --seed 0
fi
run train_ddp.py --dataset_folder "$output/pairs" --checkpoint_dir "$output/checkpoints" --resume auto \
    --codec starter --d_model 128 --num_layers 4 --dropout 0 --prior pointer --block_seconds 1 \
    --objective energy --loss_weight_spectral_energy 1 --loss_weight_floored_mel 1 --decode_seconds 1 --metrics mel \
    --batch_size 4 --lr 3e-4 --warmup_steps 20 --scheduler constant --ema_decay 0.99 --epochs 3 \
    --world_size 1 --num_workers 0 --tracker none --seed 0
run evaluate.py --checkpoint "$output/checkpoints/best_model.pt" --dataset_folder "$output/pairs" --split test \
    --items 36 --long_items 2 --temperature 0.5 --output "$output/report"
"$here/.venv/bin/python" -m encore.commands.export --checkpoint "$output/checkpoints/best_model.pt" --half true \
    --output "$output/model" --evaluation "$output/report/evaluation.json" --license mit --data \
    "30 recordings, 27 minutes, under CC0 or in the public domain, and an altered copy of each; docs/pretrained_model.md of Encore lists them"
