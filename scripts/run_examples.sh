#!/usr/bin/env bash
# Runs every example on the bundled model, in a folder of its own; `cargo test` has built those in Rust, and the Python
# package is installed in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for source in "$root"/examples/*.rs; do
  name=$(basename "$source" .rs)
  "$root/target/release/examples/$name" > "$name.log" 2>&1 || {
    echo "error: example $name failed" >&2
    cat "$name.log" >&2
    exit 1
  }
done
for source in "$root"/examples/python/*.py; do
  HF_HUB_OFFLINE=1 "$root/.venv/bin/python" "$source" > "$(basename "$source").log" 2>&1 || {
    echo "error: example $source failed" >&2
    cat "$(basename "$source").log" >&2
    exit 1
  }
done
echo "examples: $(ls "$root"/examples/*.rs "$root"/examples/python/*.py | wc -l) ran"
