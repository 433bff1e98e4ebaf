#!/usr/bin/env bash
# Puts into gpu-bundle/ all that a machine with a GPU, torch 2.11.0 and transformers needs and this one can build:
# binaries, tests with what they compare with, the bundled model, the wheels of diffusers and of this package, the
# benchmark, and run.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=gpu-bundle
rm -rf "$bundle"
mkdir -p "$bundle/assets" "$bundle/wheels" "$bundle/benchmarks/results" "$bundle/target/release/examples"

cargo build --release --bins --example bench_speed
tests=$(cargo test --release --test integration --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*integration[^"]*\)".*/\1/p' | tail -n 1)
cp target/release/tch-diffusers "$bundle"
cp target/release/examples/bench_speed "$bundle/target/release/examples"
cp benchmarks/*.py "$bundle/benchmarks"
cp target/wheels/*.whl "$bundle/wheels"
cp "$tests" "$bundle/integration"
strip "$bundle/tch-diffusers" "$bundle/integration" "$bundle"/target/release/examples/*
cp -r assets/shapes "$bundle/assets/"
mkdir -p "$bundle/generated/pipeline/_models"
cp -r tests/fixtures/generated/pipeline/_models/sd1 "$bundle/generated/pipeline/_models/"
.venv/bin/pip download --quiet --no-deps --dest "$bundle/wheels" diffusers==0.42.1

cat > "$bundle/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs the GPU tests, draws the same prompt on CPU and GPU and in Python, and measures; results go to $OUT.
set -uo pipefail
cd "$(dirname "$0")"
out=${OUT:-out}
mkdir -p "$out"
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$torch/lib TCH_DIFFUSERS_ASSETS=$PWD/assets TCH_DIFFUSERS_FIXTURES=$PWD/generated
./tch-diffusers env | tee "$out/env.txt"
./integration --ignored gpu 2>&1 | tee "$out/tests.txt"
failed=${PIPESTATUS[0]}
for device in cpu cuda; do
  ./tch-diffusers generate --prompt "a yellow star on a black background" --seed 7 --device "$device" \
    --output "$out/$device.png"
done
python3 -m pip install --quiet --no-deps --target site wheels/*.whl
export PYTHONPATH=$PWD/site
python3 - "$out" <<'PYTHON'
import sys

import torch
from tch_diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("assets/shapes").to("cuda")
generator = torch.Generator("cpu").manual_seed(7)
pipe("a yellow star on a black background", generator=generator).images[0].save(f"{sys.argv[1]}/python-cuda.png")
PYTHON
python3 benchmarks/speed.py --device cuda --rounds "${ROUNDS:-5}" 2>&1 | tee "$out/benchmark.txt"
cp benchmarks/results/* "$out"
exit "$failed"
RUN
chmod +x "$bundle/run.sh"
du -sh "$bundle"
