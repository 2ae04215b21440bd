# Shared by the scripts of this folder (sourced, not run): options, the imported data, and the training recipe.
#   DATA     folder that contains svanstrom-ir/ and sirst/ (the first argument of every script)
#   OUT      folder for data sets and runs (the second argument; default: runs/experiments)
#   DANET    the command to run (default: danet); `DANET="echo danet"` prints the commands instead
set -euo pipefail
if (($# < 1)); then
  echo "usage: bash $0 DATA [OUT]; DATA is the folder with svanstrom-ir/ and sirst/" >&2
  exit 2
fi
DATA=$1 OUT=${2:-runs/experiments} DANET=${DANET:-danet}
SVANSTROM=$OUT/svanstrom
THINNING=(--stride 6 --class_stride '{bird: 10, airplane: 12, helicopter: 12}')
# The recipe of the ablation; the preset has changed since.
NANO=(--preset svanstrom --model.name danet_nano --epochs 2 --lr 0.001 --augmentation.scale 0.6 1.6
  --augmentation.copy_paste 0.25 --augmentation.paste_scale 0.7 1.3 --augmentation.paste_contrast 1 1
  --augmentation.polarity 0.05)

import_svanstrom() {  # training frames, tuning frames (of a fifth of the training recordings) and validation frames
  [[ -f $SVANSTROM/tune.json ]] && return
  $DANET data import svanstrom "$DATA/svanstrom-ir" "$SVANSTROM" --split train "${THINNING[@]}"
  $DANET data import svanstrom "$DATA/svanstrom-ir" "$SVANSTROM" --split val --stride 3
  $DANET data split "$SVANSTROM/train.json" --fraction 0.1 --seed 0 \
    --out_a "$SVANSTROM/fit.json" --out_b "$SVANSTROM/tune.json"
}

import_all_recordings() {  # both splits at the same stride, for cross-validation
  [[ -f $OUT/all/val.json ]] && return
  $DANET data import svanstrom "$DATA/svanstrom-ir" "$OUT/all" --split all "${THINNING[@]}"
}
