#!/usr/bin/env bash
# What `make demo` runs: the whole way from raw chats to a model that learns from them, on the CPU, in a few minutes.
#   bash pipelines/demo.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-build/demo}
mkdir -p "$work"
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. A small random Qwen2.5-Omni with the real vocabulary: $work/model"
[ -e "$work/model/config.json" ] || omniprep init-model "$work/model"

say "2. Compile data_samples (51 chats, 11 of them broken on purpose) into bins of 2,048 tokens: $work/packed"
omniprep build --config pipelines/quickstart.yaml --model "$work/model" --out "$work/packed" --overwrite

say "3. Is every input row packed or rejected with a reason, and every byte as written?"
omniprep verify "$work/packed"

say "4. What the model will see of one chat: trained text in green (or {+ +}), media as marks"
omniprep inspect "$work/packed" --row data_samples/images.jsonl:5

say "5. Train on the bins; the loss must fall"
rm -rf "$work/run"
omniprep train "$work/packed" --model "$work/model" --out "$work/run" --max-steps 40 --learning-rate 3e-3 \
  --no-gradient-checkpointing --logging-steps 5
python - "$work/run" <<'PYTHON'
import json
import pathlib
import sys

states = sorted(pathlib.Path(sys.argv[1]).glob("checkpoint-*/trainer_state.json"))
losses = [entry["loss"] for entry in json.loads(states[-1].read_text())["log_history"] if "loss" in entry]
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
sys.exit(losses[-1] > losses[0] - 1)
PYTHON

say "Done. Next: omniprep build YOUR.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --out packed/"
