#!/usr/bin/env bash
# Builds the documentation site, build/docs: static pages that ask no other host for anything; and checks it.
#   scripts/docs.sh                    installs what is needed, compiles the programs, and the playground where there
#                                      is Emscripten (scripts/install_deps.sh --playground), and builds the site
#   scripts/docs.sh --serve [PORT]     shows it at http://127.0.0.1:8000, or PORT, afterwards
#   scripts/docs.sh --playground DIR   with the playground that was built before into DIR (else out/playground, if there)
#   scripts/docs.sh --programs DIR     from a build of the programs, into DIR/docs; installs and compiles nothing
# Where chromium is installed the pages are also looked at, on a telephone and a desktop, light and dark.
set -euo pipefail
cd "$(dirname "$0")/.."

port=
programs=
playground=()
while (($# > 0)); do
  case "$1" in
    --serve)
      port=8000
      if [[ ${2:-} =~ ^[0-9]+$ ]]; then
        port=$2
        shift
      fi
      ;;
    --playground)
      playground=(--playground "${2:?--playground needs a folder}")
      shift
      ;;
    --programs)
      programs=${2:?--programs needs a folder}
      shift
      ;;
    *)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
      exit 2
      ;;
  esac
  shift
done

if [[ -n $programs ]]; then
  out=$programs/docs
  if ! /usr/bin/python3 -c 'import markdown, pygments'; then
    echo "docs: scripts/install_deps.sh --docs installs what is missing" >&2
    exit 77  # to CTest: skipped
  fi
else
  scripts/install_deps.sh --docs
  # The release preset if it is there, else a build without the tests.
  programs=build/release
  out=build/docs
  if [[ ! -e $programs/CMakeCache.txt ]]; then
    programs=build/docs-programs
    cmake -S . -B "$programs" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMUTILDE_TESTS=OFF -DMUTILDE_BENCH=OFF
  fi
  targets=(mutilde_app)
  for source in tutorials/[0-9][0-9]_*.cpp; do
    targets+=("tutorial_$(basename "$source" .cpp)")
  done
  cmake --build "$programs" --target "${targets[@]}"
  if ((${#playground[@]} == 0)); then
    if command -v emcc >/dev/null; then
      scripts/playground.sh
    elif [[ ! -e out/playground/index.html ]]; then
      echo "docs: no Emscripten, so no playground; scripts/install_deps.sh --playground installs it (1 GB)"
    fi
  fi
fi
if ((${#playground[@]} == 0)) && [[ -e out/playground/index.html ]]; then
  playground=(--playground out/playground)
fi

# Debian's Python, which has Debian's packages; another may be first on the PATH.
/usr/bin/python3 docs/site/build.py --build "$programs" --out "$out" "${playground[@]}"
/usr/bin/python3 docs/site/check.py "$out"
if [[ -n $port ]]; then
  echo "http://127.0.0.1:$port"
  exec /usr/bin/python3 -m http.server --bind 127.0.0.1 --directory "$out" "$port"
fi
