#!/usr/bin/env bash
# Trains all that is shipped: the two feature networks, models/base and models/base-classification.
#
#   benchmarks/train_base.sh cpu|gpu|rehearsal DATA [RUNS]
#
# DATA: a folder with tiny-imagenet-200.zip, photos.zip, landscapes-100.zip and imagenet-sample-256.zip.
# RUNS (outputs/base): where the runs lie.
#   cpu        two cores, about 4 hours        gpu   one large GPU (prepared, never run)
#   rehearsal  all of it with hardly any photos, in two minutes: nothing is shipped, all stays in RUNS
# Everything is seeded. Stopped at any moment and called again, it goes on where it was.
#
# To carry data and weights through a narrow door: split -b 56M tiny-imagenet-200.zip part- ; cat part-* > FILE, and
# `tar c models/base Project7/weights | split -b 15M - weights-` for the way back.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '4,9s/^# *//p' "$0" >&2; exit 2; }
size=$1 data=$(realpath "$2") runs=$(realpath -m "${3:-outputs/base}")
tiny=$data/tiny-imagenet-200.zip large=$data/imagenet-sample-256.zip
photos=$data/photos.zip landscapes=$data/landscapes-100.zip
cd "$(dirname "$0")/.."
python=python3; [ -x .venv/bin/python ] && python=.venv/bin/python
mkdir -p "$runs"

# base: the squared error and the head on Tiny ImageNet, then on squares of larger photos, in cells of 8 pixels both
# times. base-classification: 32 px first, where a photo costs a quarter, then 64 and 128 px.
batch=64 vgg_epochs=12 judge_epochs=8 weights=Project7/weights shipped=models judged=2000
case $size in
  cpu) export OMP_NUM_THREADS=1  # one core for each of two trainings: threads of both would wait for each other
    width=64,128,192 base8=3 photo16=1 px128=1 crops=3,1,5 classes32=2 classes64=1 rate=6e-4
    class_width=40 class_crops=8 ;;
  gpu) width=128,256,384 base8=40 photo16=40 px128=4 crops=10,4,20 classes32=8 classes64=25 rate=1e-3
    batch=256 class_width=40 class_crops=40 judge_epochs=16 ;;
  rehearsal) export OMP_NUM_THREADS=1
    width=8,16 base8=1 photo16=1 px128=1 crops=1 classes32=1 classes64=1 rate=6e-4 few=(--limit 64)
    class_width=8 class_crops=1 vgg_epochs=1 judge_epochs=1 batch=32 judged=8
    weights=$runs/weights shipped=$runs/shipped ;;
  *) echo "The first word is cpu, gpu or rehearsal, not $size." >&2; exit 2 ;;
esac
few=("${few[@]-}")
common=(--models-dir "$runs" --batch-size $batch --mixed-precision bf16 --seed 0 --image-interval 0 --yes)

recipe() {  # SCRIPT NAME FLAGS...: trains a new model, or what is left of it
  local script=$1 name=$2; shift 2
  if [ -e "$runs/$name/last_model.pth" ]; then
    $python "Project7/$script.py" --models-dir "$runs" --resume "$name" --yes
  else
    $python "Project7/$script.py" --name "$name" "${common[@]}" ${few[@]} "$@"
  fi
}

features() {  # NETWORK EPOCHS
  local file=$weights/$1.safetensors resume=""
  [ -e "$file" ] && return
  [ -e "${file%.safetensors}.checkpoint.pth" ] && resume=--resume
  $python benchmarks/train_features.py --network "$1" --epochs "$2" --data "$tiny" --output "$file" $resume ${few[@]}
}

diffusion() {
  local sees="--encoder tf_efficientnet_lite2 --cache-features --no-mirror --mixed-precision no --batch-size 32"
  recipe train_diffusion base8 --data "$tiny" --features $width --attention-levels 2 --chroma-scale 8 --noise-shift 1.5 \
    --hints --hint-share 0.3 $sees --encoder-size 128 --head classes --head-entropy --learning-rate 5e-4 \
    --weight-decay 0.05 --epochs $base8
  recipe train_diffusion photo16 --start-from "$runs/base8" --data "$photos" --data "$landscapes" --data "$large" \
    --crops $crops --image-size 128 --encoder-size 224 --cache-features --no-mirror --mixed-precision no --batch-size 32 \
    --val-limit 300 --learning-rate 4e-4 --weight-decay 0.05 --epochs $photo16
}

classification() {
  recipe train_classification classes32 --data "$tiny" --image-size 32 --width $class_width --blocks 1,2,2,2 \
    --stem-stride 2 --learning-rate $rate --epochs $classes32
  recipe train_classification classes64 --start-from "$runs/classes32" --data "$tiny" --learning-rate $rate \
    --lr-schedule cosine --epochs $classes64
  recipe train_classification classes128 --start-from "$runs/classes64" --data "$large" --image-size 128 \
    --crops $class_crops --batch-size $((batch / 2)) --learning-rate 1e-4 --lr-schedule cosine --epochs $px128
}

beside() {  # SECOND FIRST: two functions at once; the second one's words go to a file
  ( $1 ) > "$runs/$1.log" 2>&1 &
  trap 'kill $! 2>/dev/null || true' EXIT
  $2
  wait $! || { tail -5 "$runs/$1.log" >&2; exit 1; }
}

networks() { features tiny-vgg $vgg_epochs && features judge $judge_epochs && classification; }

beside networks diffusion
$python benchmarks/ship.py "$runs/base8" "$runs/photo16" --to "$shipped/base"
$python benchmarks/ship.py "$runs/classes32" "$runs/classes64" "$runs/classes128" \
  --to "$shipped/base-classification" --most 16
$python -m Project7 evaluate --model "$shipped/base" --model "$shipped/base-classification" --data "$tiny" --split val \
  --size 64 --limit $judged --samples 8 --json "$runs/result.json"
