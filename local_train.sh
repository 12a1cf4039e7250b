#!/usr/bin/env bash
# Trains on all visible GPUs of this machine, or in one process on the CPU; logs to logs/.
#
#   bash local_train.sh --backbone R_50 --epochs 20    arguments go to train.py
#
# Run it in the folder that the paths in train_config.py are relative to, for example the one that
# holds annotations/. checkpoints/ and logs/ are made there.
set -euo pipefail
project=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

python=python
[ -x "$project/.venv/bin/python" ] && python=$project/.venv/bin/python
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
mkdir -p logs
log=logs/train_$(date +%Y%m%d_%H%M%S).log
echo "training in ${gpus/#0/1 CPU} process(es); log: $log"
run=("$python")
[ "$gpus" -gt 0 ] && run+=(-m torch.distributed.run --standalone --nproc-per-node "$gpus")
# Ctrl-C is for train.py, which says what it saved.
"${run[@]}" "$project/train.py" "$@" 2>&1 | tee -i "$log"
