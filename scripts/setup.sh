#!/usr/bin/env bash
# Checks what the build needs and fills .venv: `setup.sh libtorch` for the library alone, `setup.sh test` for diffusers
# as well, `setup.sh bench` for the benchmarks' charts, `setup.sh wheel` for what builds and checks the Python package. Run
# again, it does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:?usage: setup.sh libtorch|test|bench|wheel}
python=${PYTHON:-python3}

missing() {
  echo "error: $1" >&2
  exit 1
}

command -v cargo >/dev/null ||
  missing "cargo is missing: install Rust 1.95 or newer from https://rustup.rs"
command -v "${CXX:-c++}" >/dev/null ||
  missing "a C++ compiler is missing: run 'sudo apt-get install g++'"

# Someone who brings libtorch needs no Python to build with; the tests compare with diffusers and do.
if [ "$what" = libtorch ] && [ -n "${LIBTORCH:-}${LIBTORCH_USE_PYTORCH:-}" ]; then
  exit 0
fi

command -v "$python" >/dev/null ||
  missing "$python is missing: run 'sudo apt-get install python3 python3-venv', or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  missing "$("$python" --version) is too old: install Python 3.10 or newer and set PYTHON to it"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  missing "$python cannot make virtual environments: run 'sudo apt-get install python3-venv'"

requirements=requirements/$what.txt
stamp=.venv/.installed-$what
if cmp -s "$requirements" "$stamp"; then
  exit 0
fi

[ -x .venv/bin/pip ] || "$python" -m venv .venv
# cargo finds libtorch at a path without Python's version in it: see .cargo/config.toml.
ln -sfn "$(.venv/bin/python -c 'import os, sysconfig; print(os.path.relpath(sysconfig.get_path("purelib"), ".venv"))')" \
  .venv/site-packages

echo "installing $requirements into .venv" >&2
no_deps=()
[ "$what" = libtorch ] && no_deps=(--no-deps)
.venv/bin/pip install --quiet --disable-pip-version-check ${no_deps[@]+"${no_deps[@]}"} -r "$requirements"
cp "$requirements" "$stamp"
