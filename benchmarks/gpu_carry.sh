#!/usr/bin/env bash
# Makes a folder (32 MB) with what benchmarks/gpu.py needs, beside this repository, on a GPU machine without a network:
# wheels that an installation of torch does not bring, and config and tokenizer of a small model.
#
#   benchmarks/gpu_carry.sh SMALL FOLDER [PYTHON_VERSION]     SMALL: what `omniprep init-model SMALL` wrote
#
# There, in the repository (torch, triton, numba, pyarrow, pillow, accelerate and peft are taken to be installed):
#
#   python3 -m pip install --no-index --no-deps --target /tmp/site FOLDER/wheels/*.whl
#   PYTHONPATH=$PWD:/tmp/site HF_HUB_OFFLINE=1 python3 benchmarks/gpu.py --model FOLDER/model --out gpu.json
set -euo pipefail
small=$1 folder=$2 version=${3:-3.12}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)

mkdir -p "$folder/wheels" "$folder/model"
platforms=()
for glibc in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
# omniprep's own wheel is for its metadata, which training reads; the code that runs is the repository's.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$here"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$folder/wheels" \
  -c "$here/constraints.txt" transformers liger-kernel soundfile cffi pycparser soxr backports.zstd
find "$small" -maxdepth 1 -type f ! -name '*.safetensors*' -exec cp {} "$folder/model/" \;
du -sh "$folder"
