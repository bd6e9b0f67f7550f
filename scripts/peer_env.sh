#!/usr/bin/env bash
# Makes the Python that bench/peer_torch.py runs in, outside the repository, and prints its path as
# the last line. Running it again is free: an environment that can import torch stays as it is.
#
#   scripts/peer_env.sh             newest PyTorch from PyPI; Debian's where PyPI is out of reach
#   scripts/peer_env.sh --debian    Debian's PyTorch, in an environment of its own
#   scripts/peer_env.sh --upgrade   make it anew
#
# MUTILDE_PEER_DIR moves it. On x86-64 Linux the wheel on PyPI is the one with CUDA, and its shared
# libraries refuse to load without NVIDIA's, so those come along: 5.4 GB on disk in all.
# Without a GPU they stay idle. They do add to the resident memory of `import torch`, which
# peer_torch.py therefore reports by itself.
set -euo pipefail

dir=${MUTILDE_PEER_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mutilde/peer}
source=pypi
upgrade=false
for arg in "$@"; do
  case $arg in
    --debian) source=debian ;;
    --upgrade) upgrade=true ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
done

say() { echo "peer_env: $*" >&2; }

works() { [[ -x $1/bin/python ]] && "$1/bin/python" -c 'import torch, numpy' >/dev/null 2>&1; }

# A half-made environment is thrown away, but only what is one: the folder may be the user's choice.
clear_dir() {
  if [[ -e $1 && ! -e $1/pyvenv.cfg ]]; then
    say "$1 is there and is no virtual environment"
    exit 1
  fi
  rm -rf "$1"
}

# torch.compile compiles C++ against Python's headers, so a Python that has them comes first.
find_python() {
  local python fallback=
  for python in python3 /usr/bin/python3; do
    "$python" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
      continue
    if "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
      echo "$python"
      return 0
    fi
    fallback=${fallback:-$python}
  done
  [[ -n $fallback ]] && echo "$fallback"
}

make_pypi() {
  local python
  python=$(find_python) || { say "no Python 3.10 with venv and pip"; return 1; }
  clear_dir "$1"
  "$python" -m venv "$1" >&2 &&
    "$1/bin/pip" install --quiet --no-cache-dir --upgrade torch numpy >&2 &&
    works "$1"
}

# OpenBLAS with threads replaces the reference BLAS, which would halve its speed.
make_debian() {
  local packages=(python3-torch libopenblas0-pthread) root=()
  [[ $(id -u) -eq 0 ]] || root=(sudo)
  if ! dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    "${root[@]}" apt-get install -y --no-install-recommends "${packages[@]}" >&2 || return 1
  fi
  clear_dir "$1"
  /usr/bin/python3 -m venv --system-site-packages --without-pip "$1" >&2 && works "$1"
}

[[ $source == debian ]] && dir=$dir-debian
mkdir -p "$(dirname "$dir")"
exec 9>"$dir.lock"
flock 9  # Two benches at once make one environment.

if $upgrade || ! works "$dir"; then
  if [[ $source == pypi ]]; then
    say "installing the newest PyTorch from PyPI in $dir"
    if ! make_pypi "$dir"; then
      say "PyPI did not give a PyTorch that works: taking Debian's"
      make_debian "$dir" || { say "no PyTorch to be had"; exit 1; }
    fi
  else
    make_debian "$dir" || { say "no PyTorch from Debian"; exit 1; }
  fi
fi
command -v g++ >/dev/null || say "no g++: torch.compile will not work"
"$dir/bin/python" -c 'import torch; print("peer_env: PyTorch", torch.__version__)' >&2
echo "$dir/bin/python"
