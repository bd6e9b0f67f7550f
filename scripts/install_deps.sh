#!/usr/bin/env bash
# Installs what mutilde needs on Debian 12: only what is missing, without a question.
#   scripts/install_deps.sh                everything: build, tests, format check, both compilers
#   scripts/install_deps.sh --minimal      what scripts/quickstart.sh needs
#   scripts/install_deps.sh --docs         what scripts/docs.sh needs
#   scripts/install_deps.sh --playground   what scripts/playground.sh needs
#   scripts/install_deps.sh --bench        everything, and what scripts/bench.sh compares with
# Without root (and without a sudo that asks nothing) it names the missing packages and exits with 1.
set -euo pipefail

# To build and run the app. pkgconf finds libzip.
minimal=(
  g++ cmake ninja-build pkgconf
  libfmt-dev libstb-dev libcli11-dev nlohmann-json3-dev libzip-dev zlib1g-dev
  dataset-fashion-mnist
)
# The documentation site: Markdown, colours, mathematics, and two typefaces.
docs=(git python3 python3-markdown python3-pygments katex fonts-katex fonts-sil-charis fonts-jetbrains-mono)
# The presets, tests and tools, and the second compiler; libclang-rt holds its sanitizers. numpy reads
# an .npz, chromium looks at the documentation and valgrind at a kernel, all in tests alone.
full=(
  ccache python3-numpy chromium valgrind
  clang-14 libclang-rt-14-dev libomp-14-dev clang-format-14 clang-tidy-14
  libtomlplusplus-dev libgtest-dev libgmock-dev libboost-context-dev
)
# The page that runs in a browser, and its test. Large, so only when it is asked for.
playground=(emscripten python3 chromium python3-websockets)

# The peer that is called directly; the other one, PyTorch, comes by scripts/peer_env.sh.
bench=(libdnnl-dev)

packages=("${minimal[@]}" "${docs[@]}" "${full[@]}")
case "${1:-}" in
  "") ;;
  --minimal) packages=("${minimal[@]}") ;;
  --docs) packages=("${minimal[@]}" "${docs[@]}") ;;
  --playground) packages=("${minimal[@]}" "${playground[@]}") ;;
  --bench) packages+=("${bench[@]}") ;;
  *)
    echo "usage: scripts/install_deps.sh [--minimal | --docs | --playground | --bench]" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_deps: this needs Debian's apt. Install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    # A package that is removed but not purged is still listed, hence the look at its status.
    if [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]]; then
      echo "$package"
    fi
  done
}

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} == 0)); then
  exit 0
fi

if [[ "$(id -u)" == 0 ]]; then
  as_root=(env)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n env)
else
  echo "install_deps: missing packages: ${missing[*]}" >&2
  echo "install_deps: install them as root, then run this again:" >&2
  echo "  apt-get update && apt-get install -y ${missing[*]}" >&2
  exit 1
fi

echo "install_deps: installing ${missing[*]}"
# Waits for another apt (unattended upgrades on a fresh machine) instead of failing.
apt=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
# The package lists may be absent (a fresh container) or stale (a mirror that has moved on): update
# them first, but let an install from good lists succeed where one source cannot be reached.
"${apt[@]}" update || echo "install_deps: apt-get update failed, trying with the lists at hand" >&2
"${install[@]}" >/dev/null

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} != 0)); then
  echo "install_deps: still missing: ${missing[*]}" >&2
  exit 1
fi
