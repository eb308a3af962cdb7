#!/usr/bin/env bash
# Trains all that is shipped: the two feature networks, models/base and models/base-classification.
#
#   benchmarks/train_base.sh cpu|gpu|rehearsal DATA [RUNS]
#
# DATA: a folder with tiny-imagenet-200.zip and imagenet-sample-256.zip. RUNS (outputs/base): where the runs lie.
#   cpu        two cores that know bfloat16, about 3 hours        gpu   one large GPU, about 25 minutes
#   rehearsal  all of it with hardly any photos, in two minutes: nothing is shipped, all stays in RUNS
# Everything is seeded. Stopped at any moment and called again, it goes on where it was.
#
# To carry data and weights through a narrow door: split -b 56M tiny-imagenet-200.zip part- ; cat part-* > FILE, and
# `tar c models/base Project7/weights | split -b 15M - weights-` for the way back.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '4,8s/^# *//p' "$0" >&2; exit 2; }
size=$1 data=$(realpath "$2") runs=$(realpath -m "${3:-outputs/base}")
tiny=$data/tiny-imagenet-200.zip large=$data/imagenet-sample-256.zip
cd "$(dirname "$0")/.."
python=python3; [ -x .venv/bin/python ] && python=.venv/bin/python
mkdir -p "$runs"

# The squared error at 32 px first, where a photo costs a quarter and sky, grass and skin are learnt all the same; then
# at 64 px, then on squares of 128 px out of larger photos; and, beside that, with the perceptual term.
batch=64 vgg_epochs=12 judge_epochs=8 weights=Project7/weights shipped=models judged=2000
case $size in
  cpu) export OMP_NUM_THREADS=1  # one core for each of two trainings: threads of both would wait for each other
    width=48,96,192,256 px32=4 px64=2 perceptual=10000 px128=1 crops=10 classes32=2 classes64=1 rate=6e-4
    class_width=40 class_crops=8 ;;
  gpu) width=64,128,192,256 px32=10 px64=60 perceptual=70000 px128=4 crops=40 classes32=8 classes64=25 rate=1e-3
    batch=256 class_width=40 class_crops=40 judge_epochs=16 ;;
  rehearsal) export OMP_NUM_THREADS=1
    width=8,16 px32=1 px64=1 perceptual=64 px128=1 crops=1 classes32=1 classes64=1 rate=6e-4 few=(--limit 64)
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
  recipe train_diffusion px32 --data "$tiny" --image-size 32 --features $width --noise-shift 3 --hints \
    --learning-rate $rate --epochs $px32
  recipe train_diffusion px64 --start-from "$runs/px32" --data "$tiny" --learning-rate $rate --lr-schedule cosine \
    --epochs $px64
}

classification() {
  recipe train_classification classes32 --data "$tiny" --image-size 32 --width $class_width --blocks 1,2,2,2 \
    --stem-stride 2 --learning-rate $rate --epochs $classes32
  recipe train_classification classes64 --start-from "$runs/classes32" --data "$tiny" --learning-rate $rate \
    --lr-schedule cosine --epochs $classes64
  recipe train_classification classes128 --start-from "$runs/classes64" --data "$large" --image-size 128 \
    --crops $class_crops --batch-size $((batch / 2)) --learning-rate 1e-4 --lr-schedule cosine --epochs $px128
}

perceptual() {
  local term
  [ $size = rehearsal ] && term=(--perceptual-weights "$weights/tiny-vgg.safetensors") || term=(--limit $perceptual)
  recipe train_diffusion_v2 perceptual --start-from "$runs/px64" --data "$tiny" --perceptual-net tiny "${term[@]}" \
    --learning-rate 1e-4 --lr-schedule cosine --epochs 1
}

larger() {
  recipe train_diffusion px128 --start-from "$runs/px64" --data "$large" --image-size 128 --crops $crops \
    --learning-rate 1e-4 --lr-schedule cosine --epochs $px128
}

beside() {  # SECOND FIRST: two functions at once; the second one's words go to a file
  ( $1 ) > "$runs/$1.log" 2>&1 &
  trap 'kill $! 2>/dev/null || true' EXIT
  $2
  wait $! || { tail -5 "$runs/$1.log" >&2; exit 1; }
}

networks() { features tiny-vgg $vgg_epochs && features judge $judge_epochs && classification; }

beside networks diffusion
beside perceptual larger
$python benchmarks/ship.py "$runs/px32" "$runs/px64" "$runs/px128" --to "$shipped/base"
$python benchmarks/ship.py "$runs/classes32" "$runs/classes64" "$runs/classes128" \
  --to "$shipped/base-classification" --most 16
$python -m Project7 evaluate --model "$shipped/base" --model "$shipped/base-classification" --data "$tiny" --split val \
  --size 64 --limit $judged --samples 8 --json "$runs/result.json"
