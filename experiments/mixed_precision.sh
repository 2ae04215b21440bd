#!/usr/bin/env bash
# Does mixed precision change the accuracy? Trains danet_nano on synthetic scenes (preset demo) with three seeds, in float32
# and in bfloat16; about half an hour on one core. Writes OUT/mixed_precision.
#
#   bash experiments/mixed_precision.sh [OUT]
set -euo pipefail
OUT=${1:-runs/experiments} DANET=${DANET:-danet}
SCENES=$OUT/scenes
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [[ ! -f $SCENES/tune.json ]]; then
  $DANET data synthesize "$SCENES" --size 160x192 --images 500 --val_images 700 --overwrite
  $DANET data split "$SCENES/val.json" --fraction 0.3 --out_a "$SCENES/heldout.json" --out_b "$SCENES/tune.json"
fi
$DANET ablate "$SCENES/heldout.json" --tune "$SCENES/tune.json" --rows safem+acfa \
  --more '{"bfloat16": ["--model.safem", "true", "--model.acfa", "true", "--amp", "bfloat16"]}' --seeds 0 1 2 \
  --out "$OUT/mixed_precision" -- --preset demo --amp off --data "$SCENES/train.json"
