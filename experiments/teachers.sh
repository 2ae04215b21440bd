#!/usr/bin/env bash
# The three teachers of danet_nano, each trained on targets of its scale, and the same budget spent otherwise: the student's
# network on the same scale. Each is evaluated on the validation videos. Writes OUT/teachers.
source "$(dirname "$0")/common.sh"
import_svanstrom

train_and_evaluate() {  # NAME, then options of danet train
  local run=$OUT/teachers/$1
  shift
  if [[ ! -f $run/weights.safetensors ]]; then
    if [[ -f $run/config.yaml ]]; then
      $DANET train --resume "$run"
    else
      $DANET train "${NANO[@]}" --data "$SVANSTROM/fit.json" --out "$run" "$@"
    fi
  fi
  $DANET evaluate "$run/weights.safetensors" "$SVANSTROM/val.json" --tune "$SVANSTROM/tune.json" --target drone \
    --criterion iou30 --out "$run/evaluate"
}

train_and_evaluate small --scale small --model.widths "[24, 48, 64, 128]" --model.depths "[2, 3, 2, 1]"
train_and_evaluate medium --scale medium --model.widths "[16, 48, 80, 128]" --model.depths "[1, 4, 3, 1]"
train_and_evaluate large --scale large --model.widths "[16, 32, 80, 160]" --model.depths "[1, 2, 4, 2]"
for scale in small medium large; do
  train_and_evaluate "student_$scale" --scale "$scale"
done
