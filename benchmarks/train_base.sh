#!/usr/bin/env bash
# Trains all that is shipped: the two feature networks, models/base and models/base-classification.
#
#   benchmarks/train_base.sh cpu|gpu|rehearsal DATA [RUNS]
#
# DATA: a folder with tiny-imagenet-200.zip, photos.zip, landscapes-100.zip and imagenet-sample-256.zip.
# RUNS (outputs/base): where the runs lie.
#   cpu        two cores of 2023, about 6 hours        gpu   one large GPU (prepared, never run)
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

# base: the squared error and the head on Tiny ImageNet, then on squares of larger photos, then on both, in cells of 8
# pixels each time. base-classification: both at once, with the same encoder.
batch=64 vgg_epochs=12 judge_epochs=8 weights=Project7/weights shipped=models judged=2000
case $size in
  cpu) export OMP_NUM_THREADS=1  # one core for each of two trainings: threads of both would wait for each other
    width=64,128,192 base8=3 photo16=1 crops=3,1,5 mix=1 mix_crops=1,4,1,5 classes=1 classes2=2
    class_width=40 ;;
  gpu) width=128,256,384 base8=40 photo16=40 crops=10,4,20 mix=20 mix_crops=1,10,4,20 classes=20 classes2=10
    class_width=64 batch=256 judge_epochs=16 ;;
  rehearsal) export OMP_NUM_THREADS=1
    width=8,16 base8=1 photo16=1 crops=1 mix=1 mix_crops=1 classes=1 classes2=1 class_width=8 few=(--limit 64)
    vgg_epochs=1 judge_epochs=1 batch=32 judged=8
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

both=(--data "$tiny" --data "$photos" --data "$landscapes" --data "$large")
small="--image-size 128 --val-limit 300 --lr-schedule cosine --weight-decay 0.05 --zoom 0.85 --old-photos 0.1 --seed 1"

mixed() {
  recipe train_diffusion mix --start-from "$runs/photo16" "${both[@]}" --crops $mix_crops $small --encoder-size 224 \
    --hint-share 0.3 --batch-size 32 --learning-rate 4e-4 --epochs $mix
}

classification() {
  recipe train_classification classes "${both[@]}" --crops $mix_crops $small --encoder tf_efficientnet_lite2 \
    --encoder-size 224 --width $class_width --stem-stride 8 --rebalance 0.25 --batch-size 32 --learning-rate 6e-4 \
    --epochs $classes
  # The two epochs were trained by two processes with batches of 32, which is the same step.
  recipe train_classification classes2 --start-from "$runs/classes" "${both[@]}" --crops $mix_crops $small --batch-size 64 \
    --learning-rate 6e-4 --epochs $classes2 --seed 2
}

beside() {  # SECOND FIRST: two functions at once; the second one's words go to a file
  ( $1 ) > "$runs/$1.log" 2>&1 &
  trap 'kill $! 2>/dev/null || true' EXIT
  $2
  wait $! || { tail -5 "$runs/$1.log" >&2; exit 1; }
}

networks() { features tiny-vgg $vgg_epochs && features judge $judge_epochs && classification; }

stages() { diffusion && mixed; }
beside networks stages
$python benchmarks/ship.py "$runs/base8" "$runs/photo16" "$runs/mix" --to "$shipped/base"
$python benchmarks/ship.py "$runs/classes" "$runs/classes2" --to "$shipped/base-classification" --most 16
$python -m Project7 evaluate --model "$shipped/base" --model "$shipped/base-classification" --data "$tiny" --split val \
  --size 64 --limit $judged --samples 8 --json "$runs/result.json"
