#!/usr/bin/env bash
# Ablation of danet_nano with three seeds: SaFEM and ACFA, ADCR, and distillation from three teachers. 12 runs of 948 steps
# and three teachers; about 5 hours on one core. Writes OUT/ablation and OUT/teachers.
source "$(dirname "$0")/common.sh"
import_svanstrom
bash "$(dirname "$0")/teachers.sh" "$DATA" "$OUT"
$DANET ablate "$SVANSTROM/val.json" --tune "$SVANSTROM/tune.json" --target drone --criterion iou30 \
  --rows baseline safem+acfa safem+acfa+adcr safem+acfa+adcr+sskd --seeds 0 1 2 --out "$OUT/ablation" \
  --teacher_small "$OUT/teachers/small/weights.safetensors" \
  --teacher_medium "$OUT/teachers/medium/weights.safetensors" \
  --teacher_large "$OUT/teachers/large/weights.safetensors" \
  -- "${NANO[@]}" --data "$SVANSTROM/fit.json"
