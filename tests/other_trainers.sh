#!/usr/bin/env bash
# Tests of the adapters whose trainers ask for other packages than constraints.txt pins. Those packages are downloaded
# into FOLDER/TRAINER (some 100 MB) and found before the ones of .venv, which stay as they are:
#
#   tests/other_trainers.sh FOLDER ms_swift|llamafactory|axolotl|torchtitan
#
# The versions are named one by one, without their dependencies: the trainers' own lists ask for other releases of
# packages that .venv has, and for demo pages, clouds and kernels for GPUs.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1/$2 trainer=$2
cd "$(dirname "$0")/.."
case $trainer in
  ms_swift) packages="ms-swift==3.9.3 transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2 trl==0.24.0 peft==0.17.1
    datasets==3.6.0 fsspec==2025.3.0 modelscope==1.40.2 modelscope_hub==0.5.1 addict==2.4.0 dacite==1.9.2 binpacking==2.0.1
    json_repair==0.64.6 jieba==0.42.1 rouge==1.0.1 nltk==3.10.4 einops==0.8.2" ;;
  llamafactory) packages="llamafactory==0.9.5 transformers==5.6.0 tokenizers==0.22.2 huggingface_hub==1.33.0 trl==0.24.0
    omegaconf==2.4.0 antlr4-python3-runtime==4.9.3" ;;
  axolotl) packages="axolotl==0.19.0 trl==1.9.0 addict==2.4.0" ;;
  torchtitan) packages="torchtitan==0.3.0 tyro==1.0.17 docstring_parser==0.18.0" ;;
  *) echo "$trainer: no trainer that is tested here" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086  # a list of words
[ -d "$folder" ] || .venv/bin/python -m pip install --quiet --no-deps --target "$folder" $packages
# LLaMA-Factory refuses newer accelerate, peft and datasets than it lists.
PYTHONPATH=$(realpath "$folder") DISABLE_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
  .venv/bin/python -m pytest tests/test_adapters.py tests/test_trainer_blocks.py tests/test_packed_stream.py -q -p no:cacheprovider -k "$trainer" -rs
