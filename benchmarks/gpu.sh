#!/bin/sh
# Measure everything that needs a GPU, in about a quarter of an hour on one GPU of the H200 class:
#
#     sh benchmarks/gpu.sh PEERS
#
# PEERS is the folder of peers that engine.py describes. The model is random, in the shape of Qwen3-0.6B and in bfloat16.
# Training is measured beside PEFT and TRL, sampling beside transformers; then the CUDA tests run.
set -e
cd "$(dirname "$0")/.."
model=$(mktemp -d)
trap 'rm -rf "$model"' EXIT
python benchmarks/engine.py --device cuda --shape 0.6b --vocab 151936 --rounds 2 --peers "$1" \
    --variants ours,ours-unembed,peft-sorted,trl-grouped-16,trl-packing
python -c "from pathlib import Path; from benchmarks.engine import write_model; \
write_model(Path('$model'), 151936, '0.6b', 'bfloat16')"
python benchmarks/sampling.py --device cuda --model "$model" --tokens 128 --rounds 2
python -m pytest tests/local/test_cuda.py
