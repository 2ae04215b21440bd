#!/usr/bin/env bash
# Ablation by 3-fold cross-validation over the ten drone recordings, half the training budget, two seeds; the remedies for
# ADCR; drones as the only class; the large teacher beside its student. Writes one folder of OUT per ablation.
source "$(dirname "$0")/common.sh"
import_all_recordings

ablate() {  # NAME, then options of danet ablate up to --, then options of danet train
  local name=$1
  shift
  $DANET ablate "$OUT/all/val.json" --folds 3 --target drone --criterion iou30 --out "$OUT/$name" "$@"
}

BUDGET=("${NANO[@]}" --data "$OUT/all/train.json" --epochs 1)
ablate cross_validation_seed0 --rows baseline safem+acfa safem+acfa+adcr --seeds 0 -- "${BUDGET[@]}"
ablate cross_validation_seed1 --rows safem+acfa safem+acfa+adcr --seeds 1 --more '{
  "one negative per positive": ["--adcr.weight", "0.1", "--adcr.negatives", "1"],
  "levels 4 and 8 only": ["--adcr.weight", "0.1", "--adcr.levels", "2"],
  "drone only": ["--model.classes", "[drone]"],
  "drone only with adcr": ["--model.classes", "[drone]", "--adcr.weight", "0.1"]}' -- "${BUDGET[@]}"
ablate large_teacher --rows safem+acfa --seeds 1 --more '{
  "teacher": ["--model.widths", "[16, 32, 80, 160]", "--model.depths", "[1, 2, 4, 2]"]}' -- "${BUDGET[@]}" --scale large
