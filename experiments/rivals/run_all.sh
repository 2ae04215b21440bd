#!/usr/bin/env bash
# Trains and evaluates all rivals on the same splits, one after the other, with one thread; prints the table of all that are
# finished after each of them. Started again, it skips what is finished and continues what was interrupted.
#
#   bash experiments/rivals/run_all.sh DATA OUT
#
# DATA holds fit.json, tune.json and val.json with their images, see README.md.
# Environment variables:
#   RIVALS_PYTHON  Python with ultralytics, torchvision and onnx; without it, the YOLO and segmentation entries are left out
#   BASIC_IRSTD    checkout of github.com/XinyiYing/BasicIRSTD; without it, the segmentation entries are left out
#   PYTHON         Python with danet (default: python)
#   MINUTES        budget of each training, in processor time (default: 60)
#   STEPS          budget in steps instead, to try the script
#   PATIENCE       epochs without improvement after which a training stops, for the longer budget: MINUTES=360 PATIENCE=30
#   STRIDE         evaluate on every N-th image of each video (default: 1)
#   NICE           how much the programs give way to others (default: 10)
#   ENTRIES        names of the entries to run (default: all); `ENTRIES=list` prints them
set -euo pipefail
if (($# != 2)); then
  echo "usage: bash $0 DATA OUT" >&2
  exit 2
fi
HERE=$(cd "$(dirname "$0")" && pwd)
DATA=$(realpath "$1") OUT=$(realpath -m "$2")
PYTHON=${PYTHON:-python} MINUTES=${MINUTES:-60} STRIDE=${STRIDE:-1} PATIENCE=${PATIENCE:-} NICE=${NICE:-10}
export OMP_NUM_THREADS=1 PYTHONPATH=$(realpath "$HERE/../..")${PYTHONPATH:+:$PYTHONPATH}
FOUR=(drone bird airplane helicopter)
EVALUATION=(--target drone --criterion iou30 --stride "$STRIDE" --threads 1)
IMAGES=$("$PYTHON" -c "import json, sys; print(len(json.load(open(sys.argv[1]))['images']))" "$DATA/fit.json")

danet() { nice -n "$NICE" "$PYTHON" -W ignore -m danet "$@"; }
train() { nice -n "$NICE" "$PYTHON" -W ignore "$HERE/processor_time.py" train "$@"; }
rival() { nice -n "$NICE" "$RIVALS_PYTHON" -W ignore "$HERE/$1" "${@:2}"; }
budget() { if [[ -n ${STEPS:-} ]]; then echo --steps "$STEPS"; else echo --minutes "$MINUTES"; fi; }

evaluate() {  # NAME WORD...: at the threshold of the tuning images; at score 0.5 if nothing is found there
  local words=("${@:2}" "${EVALUATION[@]}" --out "$OUT/$1/evaluation")
  danet evaluate "${words[@]}" --tune "$DATA/tune.json" || danet evaluate "${words[@]}"
}

yolo() {  # NAME MODEL CLASS...
  local name=$1 model=$2 classes=("${@:3}") set="$OUT/data/yolo_$(($# - 2))"
  [[ -f $set/data.yaml ]] || "$PYTHON" "$HERE/yolo_dataset.py" "$DATA" "$set" --classes "${classes[@]}"
  # shellcheck disable=SC2046
  rival ultralytics_yolo.py "$model" "$set/data.yaml" "$OUT/$name" $(budget) ${PATIENCE:+--patience "$PATIENCE"}
  evaluate "$name" "$OUT/$name/model.onnx" "$DATA/val.json"
}

segmentation() {  # NAME NETWORK CLASS...
  local name=$1 network=$2 classes=("${@:3}")
  # shellcheck disable=SC2046
  rival segmentation.py "$network" "$BASIC_IRSTD" "$DATA" "$OUT/$name" --classes "${classes[@]}" $(budget) --stride "$STRIDE"
  local words=(--predictions "$OUT/$name/val_results.json" "$DATA/val.json" --class_names "${classes[@]}" "${EVALUATION[@]}")
  words+=(--out "$OUT/$name/evaluation")
  danet evaluate "${words[@]}" --tune "$DATA/tune.json" --tune_predictions "$OUT/$name/tune_results.json" ||
    danet evaluate "${words[@]}"
}

stage() {  # NAME STAGE SHARE PRESET BATCH WORD...: a training with a share of the budget (percent)
  # The learning rate falls over as many epochs as fit: a training of two minutes measures the time of a step.
  local run="$OUT/$1/$2" minutes epochs=1 limit=() words
  if [[ -f $run/weights.safetensors ]]; then return; fi
  if [[ -f $run/last.safetensors ]]; then train --resume "$run"; return; fi
  minutes=$(awk "BEGIN {print $MINUTES * $3 / 100}")
  words=(--preset "$4" --batch "$5" --data "$DATA/fit.json" --no-plots --workers 0 --threads 1 "${@:6}")
  if [[ -n ${STEPS:-} ]]; then
    limit=(--max_minutes 0.2)
  else
    train "${words[@]}" --epochs 1 --max_minutes 2 --out "$run-pace" --overwrite --quiet --json "$run-pace.json"
    epochs=$("$PYTHON" "$HERE/epochs.py" "$run-pace.json" "$minutes" "$IMAGES" "$5")
    limit=(--max_minutes "$minutes")
    [[ -n $PATIENCE ]] && limit+=(--val "$DATA/tune.json" --patience "$PATIENCE")
  fi
  train "${words[@]}" --epochs "$epochs" "${limit[@]}" --out "$run"
}

# Our trainer, with the two stages of `make real`: crops, then whole frames. RATES: the learning rates of the stages.
own() {  # NAME NETWORK "CLASS ..." "RATE RATE" OPTION...
  local name=$1 classes rates words
  read -ra classes <<<"$3"
  read -ra rates <<<"$4"
  words=(--model.name "$2" --model.classes "${classes[@]}" "${@:5}")
  stage "$name" crops 65 svanstrom 16 --lr "${rates[0]}" "${words[@]}"
  stage "$name" frames 35 svanstrom_frames 8 --lr "${rates[1]}" \
    --weights "$OUT/$name/crops/weights.safetensors" "${words[@]}"
  evaluate "$name" "$OUT/$name/frames/weights.safetensors" "$DATA/val.json"
}

filter() {  # NAME
  evaluate "$1" local_contrast "$DATA/val.json"
}

PLAIN=(--model.safem false --model.acfa false)
RATES="'0.0015 0.0007'" NANO_RATES="'0.002 0.001'"
QUEUE=(
  "danet_s|own danet_s danet_s '${FOUR[*]}' $RATES"
  "yolo11n|yolo yolo11n yolo11n.yaml ${FOUR[*]}"
  "yolo26n|yolo yolo26n yolo26n.yaml ${FOUR[*]}"
  "yolo26n_p2|yolo yolo26n_p2 yolo26n-p2.yaml ${FOUR[*]}"
  "fcos|own fcos danet_s '${FOUR[*]}' $RATES ${PLAIN[*]}"
  "atss|own atss danet_s '${FOUR[*]}' $RATES ${PLAIN[*]} --assignment atss"
  "acm|segmentation acm acm ${FOUR[*]}"
  "alcnet|segmentation alcnet alcnet ${FOUR[*]}"
  "dnanet|segmentation dnanet dnanet ${FOUR[*]}"
  "local_contrast|filter local_contrast"
  "danet_nano|own danet_nano danet_nano '${FOUR[*]}' $NANO_RATES"
  "danet_s_drone|own danet_s_drone danet_s drone $RATES"
  "yolo11n_drone|yolo yolo11n_drone yolo11n.yaml drone"
  "yolo26n_drone|yolo yolo26n_drone yolo26n.yaml drone"
  "yolo26n_p2_drone|yolo yolo26n_p2_drone yolo26n-p2.yaml drone"
  "fcos_drone|own fcos_drone danet_s drone $RATES ${PLAIN[*]}"
  "atss_drone|own atss_drone danet_s drone $RATES ${PLAIN[*]} --assignment atss"
  "acm_drone|segmentation acm_drone acm drone"
  "alcnet_drone|segmentation alcnet_drone alcnet drone"
  "dnanet_drone|segmentation dnanet_drone dnanet drone"
  "danet_nano_drone|own danet_nano_drone danet_nano drone $NANO_RATES"
)

is_possible() {  # COMMAND: whether what the entry needs is there
  case $1 in
    yolo\ *) [[ -n ${RIVALS_PYTHON:-} ]] ;;
    segmentation\ *) [[ -n ${RIVALS_PYTHON:-} && -n ${BASIC_IRSTD:-} ]] ;;
  esac
}

table() {  # the comparison of all finished entries
  local folders=() entry name
  for entry in "${QUEUE[@]}"; do
    name=${entry%%|*}
    [[ -f $OUT/$name/done ]] && folders+=("$name=$OUT/$name/evaluation")
  done
  ((${#folders[@]} > 1)) || return 0
  danet compare "${folders[@]}" --target drone --criterion iou30 --stride "$STRIDE" --out "$OUT/table" --quiet
  cat "$OUT/table/comparison.md"
}

if [[ ${ENTRIES:-} == list ]]; then
  printf '%s\n' "${QUEUE[@]%%|*}"
  exit 0
fi
mkdir -p "$OUT"
exec 9>"$OUT/lock"
flock -n 9 || { echo "$OUT: another run_all.sh uses this folder" >&2; exit 1; }
for entry in "${QUEUE[@]}"; do
  name=${entry%%|*} command=${entry#*|}
  [[ -z ${ENTRIES:-} || " $ENTRIES " == *" $name "* ]] || continue
  [[ ! -f $OUT/$name/done ]] || continue
  if ! is_possible "$command"; then
    echo "$name: left out, see RIVALS_PYTHON and BASIC_IRSTD"
    continue
  fi
  echo "$(date '+%F %T') $name"
  mkdir -p "$OUT/$name"
  # Not as a condition, in which bash would go on after an error.
  set +e
  (set -e; eval "$command") >>"$OUT/$name/log.txt" 2>&1 9>&-
  status=$?
  set -e
  if ((status == 0)); then
    touch "$OUT/$name/done"
    table
  else
    echo "$name: failed, see $OUT/$name/log.txt; the next run tries it again" >&2
  fi
done
table
