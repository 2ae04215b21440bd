#!/usr/bin/env bash
# Baselines on the validation videos: the local-contrast filter, and a plain RepVGG with an anchor-free head, with our label
# assignment and with ATSS (three seeds each). Writes OUT/local_contrast and OUT/plain_networks.
source "$(dirname "$0")/common.sh"
import_svanstrom
$DANET evaluate local_contrast "$SVANSTROM/val.json" --tune "$SVANSTROM/tune.json" --target drone --criterion iou30 \
  --out "$OUT/local_contrast"
$DANET ablate "$SVANSTROM/val.json" --tune "$SVANSTROM/tune.json" --target drone --criterion iou30 --rows baseline \
  --more '{"atss": ["--model.safem", "false", "--model.acfa", "false", "--assignment", "atss"]}' --seeds 0 1 2 \
  --out "$OUT/plain_networks" -- "${NANO[@]}" --data "$SVANSTROM/fit.json"
