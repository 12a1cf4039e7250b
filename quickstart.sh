#!/usr/bin/env bash
# Command 1: sets up, then runs the whole chain on real faces and ends in a page to look at.
#
#   bash quickstart.sh                everything, into quickstart/
#   bash quickstart.sh --setup-only   only .venv, with requirements.txt installed
#   bash quickstart.sh --cpu          torch without CUDA, from the index in TORCH_INDEX_URL
#
# Run again, it does no finished work twice.
set -euo pipefail
cd "$(dirname "$0")"

fail() {
    echo "error: $*" >&2
    exit 1
}

# apt_hint PACKAGE...: what to type on Debian and Ubuntu; nothing elsewhere.
apt_hint() {
    if command -v apt-get >/dev/null; then echo " (apt-get install $*)"; fi
}

sha256() { # macOS has shasum
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
}

# --- Set up -------------------------------------------------------------------------------------
setup() {
    local python="${PYTHON:-python3}" stamp=.venv/requirements.sha256 wanted
    command -v "$python" >/dev/null ||
        fail "python3 is missing: install Python 3.10 or later$(apt_hint python3 python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: 3.10 or later is needed; set PYTHON=/path/to/python3"
    # Debian packages these parts apart from Python; OpenCV needs the libraries on Linux.
    local missing
    missing=$("$python" - <<'EOF'
import ctypes, importlib.util, sys
if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
    print("python3-venv")
libraries = (("libGL.so.1", "libgl1"), ("libgthread-2.0.so.0", "libglib2.0-0"))
for library, package in libraries if sys.platform == "linux" else ():
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
EOF
    )
    # shellcheck disable=SC2086,SC2116
    [ -z "$missing" ] || fail "missing:" $missing"$(apt_hint $missing)"
    wanted=$(cat requirements.txt pyproject.toml | sha256)
    if [ ! -x .venv/bin/python ]; then
        echo "== making .venv"
        "$python" -m venv .venv
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        local size="about 6 GB with torch's CUDA libraries on Linux; see --cpu"
        if [ -n "$cpu" ]; then
            size="torch without CUDA"
            grep '^torch' requirements.txt >.venv/torch.txt
            .venv/bin/python -m pip install --disable-pip-version-check --progress-bar on \
                --index-url "$TORCH_INDEX_URL" -r .venv/torch.txt
        fi
        echo "== installing requirements.txt into .venv ($size)"
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar on \
            -r requirements.txt
        echo "$wanted" >"$stamp"
    fi
    .venv/bin/python -c 'import cv2' || fail "OpenCV does not load: see the line above"
}

# --- The chain: the commands that README shows ----------------------------------------------------
# stage NAME TARGET SOURCE COMMAND...: runs COMMAND unless TARGET is newer than SOURCE.
stage() {
    local name=$1 target=$2 source=$3
    shift 3
    if [ -e "$target" ] && [ ! "$source" -nt "$target" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name: python $*"
    python "$@"
    touch "$target"
}

chain() {
    local q=quickstart
    local notes=$q/annotations model=$q/checkpoints/sdd_fiqa
    stage faces $q/faces/orl_faces.json dataset/orl_faces.py \
        -m dataset.orl_faces --out-dir $q/faces
    stage list $notes/DATA.labelpath $q/faces/orl_faces.json \
        generate_pseudo_labels/gen_datalist.py --data-root $q/faces --out-dir $notes
    stage embed $notes/feats_npy/Embedding_Features.json $notes/DATA.labelpath \
        generate_pseudo_labels/extract_embedding/extract_feats.py --weights sface --out-dir $notes
    stage label $notes/quality_pseudo_labels.txt $notes/feats_npy/Embedding_Features.json \
        generate_pseudo_labels/gen_pseudo_labels.py --out-dir $notes
    stage train $model/net_8epoch.pth $notes/quality_pseudo_labels.txt \
        train.py --img-list $notes/quality_pseudo_labels.txt --checkpoints $q/checkpoints \
        --backbone MFN --epochs 8 --lr 1e-3 --batch-size 32 --val-identities 0.25
    stage score $q/report.html $model/net_8epoch.pth \
        eval.py $model/held_out.txt --model $model/net_8epoch.pth \
        --out $q/scores.csv --report $q/report.html
    echo "== the identities left out of training"
    python -m evaluation.by_kind --scores $q/scores.csv --labels $notes/quality_pseudo_labels.txt
    echo "Faces in order of their scores: $PWD/$q/report.html"
}

cpu='' setup_only=''
for argument in "$@"; do
    case $argument in
        --cpu) cpu=1 ;;
        --setup-only) setup_only=1 ;;
        *) fail "$argument: unknown; the flags are --cpu and --setup-only" ;;
    esac
done
[ -z "$cpu" ] || [ -n "${TORCH_INDEX_URL:-}" ] ||
    fail "--cpu: set TORCH_INDEX_URL to the CPU index that PyTorch's install page names"
setup
[ -z "$setup_only" ] || exit 0
# shellcheck source=/dev/null
source .venv/bin/activate
chain
