#!/usr/bin/env bash
# Fuzzes the readers of files, each with RUNS inputs: `scripts/fuzz.sh [RUNS] [TARGET...]`, a million and all unless given.
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and libtorch. What breaks a reader is left in fuzz/artifacts; the last lines
# of each target's log say how many inputs there were.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-1000000}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors config shard_index tokenizer lora png_text)
command -v cargo-fuzz > /dev/null || {
  echo "error: cargo-fuzz is missing: cargo install cargo-fuzz" >&2
  exit 1
}
# Binaries of another package get no run path from the library.
export LD_LIBRARY_PATH="${LIBTORCH:-$PWD/.venv/site-packages/torch}/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
python3 fuzz/seeds.py
logs=${CARGO_TARGET_DIR:-fuzz/target}/logs
mkdir -p "$logs"
failed=0
for target in "${targets[@]}"; do
  # An allocation of 1 GB is a finding, and so is an input that takes 20 seconds.
  options=(-runs="$runs" -max_len=4096 -malloc_limit_mb=1024 -rss_limit_mb=4096 -timeout=20 -seed=1 -print_final_stats=1)
  if cargo fuzz run --sanitizer none "$target" -- "${options[@]}" > "$logs/$target.log" 2>&1; then
    echo "$target: $(grep -o 'number_of_executed_units: *[0-9]*' "$logs/$target.log" | grep -o '[0-9]*$') inputs, none breaks it"
  else
    failed=1
    echo "$target: broken, see $logs/$target.log" >&2
    tail -n 20 "$logs/$target.log" >&2
  fi
done
exit $failed
