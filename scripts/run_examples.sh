#!/usr/bin/env bash
# Runs every example on the bundled model, in a folder of its own; `cargo test` has built them.
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
echo "examples: $(ls "$root"/examples/*.rs | wc -l) ran"
