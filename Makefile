# make demo        draws a picture with the bundled model
# make test        every test: Rust, parity against diffusers, Python
# make wheel       the Python package, a wheel in target/wheels
# make upstream CHECKOUT=PATH  diffusers' own tests of schedulers and pipelines, of a checkout of diffusers, on the Python package
# make parity      the table of differences to diffusers, from the last `make test`
# make judge       how many of 200 prompts the bundled model draws right, here and in diffusers
# make bench       time and memory side by side with diffusers, then `make bench-speed`
# make bench-speed   every way to speed up a step and a decode at Stable Diffusion 1.5's size, side by side with diffusers
# make bench-gpu     the same on a GPU, in float16 as well
# make bench-memory  peak memory and time of each technique that saves memory, side by side with diffusers
# make bench-python  the Python package side by side with diffusers
# make gpu-bundle  a folder to carry to a machine with a GPU; its run.sh runs the GPU tests and the benchmark there
# make fuzz        a million inputs to each reader of files; needs cargo-fuzz (docs/reliability.md)
# make soak        a thousand generations, and whether the memory that they take stays flat
# make lint        formatting, clippy, rustdoc, and whether docs/pipelines.md is what the code says

PROMPT ?= a yellow star on a blue background
SEED   ?= 7
PYTHON_ENV := .venv/bin/python
BINARY := target/release/tch-diffusers

.PHONY: demo build wheel install-wheel upstream test fixtures parity judge bench bench-speed bench-gpu bench-memory \
	bench-python gpu-bundle fuzz soak lint libtorch python clean

demo: build
	@$(BINARY) generate --prompt "$(PROMPT)" --seed $(SEED) --output demo.png
	@echo
	@echo "The picture is $(CURDIR)/demo.png."
	@echo 'Another one:  make demo PROMPT="a red ring on a white background" SEED=1'
	@echo 'or:           $(BINARY) generate --prompt "a green circle on a black background" --output circle.png'

build: libtorch
	@cargo build --release

libtorch:
	@scripts/setup.sh libtorch

python: libtorch
	@scripts/setup.sh test

wheel: python
	@scripts/setup.sh wheel
	@rm -f target/wheels/*.whl
	.venv/bin/maturin build --release --manifest-path python/Cargo.toml --out target/wheels

install-wheel: wheel
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/wheels/*.whl

upstream: install-wheel
	$(PYTHON_ENV) python/tests/upstream/run.py $(CHECKOUT)
	$(PYTHON_ENV) python/tests/upstream/pipelines.py $(CHECKOUT)

fixtures: python
	@$(PYTHON_ENV) tests/fixtures/make.py

# The tests run side by side: threads that wait in a loop would slow each other down.
test: build fixtures install-wheel
	@rm -rf target/parity
	OMP_WAIT_POLICY=passive cargo test --release
	@scripts/run_examples.sh
	OMP_WAIT_POLICY=passive $(PYTHON_ENV) -m pytest -q tests
	OMP_WAIT_POLICY=passive $(PYTHON_ENV) -m pytest -c python/pyproject.toml python/tests --pyargs tch_diffusers
	@$(PYTHON_ENV) tests/parity_table.py

parity: fixtures
	@$(PYTHON_ENV) tests/parity_table.py

judge: build python
	$(PYTHON_ENV) tests/judge/judge_shapes.py --side diffusers
	$(PYTHON_ENV) tests/judge/judge_shapes.py --side rust --binary $(BINARY)

bench: build python
	cargo build --release --example bench_worker
	$(PYTHON_ENV) benchmarks/bench.py
	@$(MAKE) bench-speed

bench-speed: build python
	@scripts/setup.sh bench
	cargo build --release --example bench_speed --example bench_sizes
	$(PYTHON_ENV) benchmarks/speed.py

bench-gpu: build python
	@scripts/setup.sh bench
	cargo build --release --example bench_speed --example bench_sizes
	$(PYTHON_ENV) benchmarks/speed.py --device cuda

bench-memory: build python
	@scripts/setup.sh bench
	cargo build --release --example bench_memory
	$(PYTHON_ENV) benchmarks/memory.py

bench-python: install-wheel
	$(PYTHON_ENV) benchmarks/python_package.py

gpu-bundle: build fixtures wheel
	@scripts/gpu_bundle.sh

fuzz: libtorch
	scripts/fuzz.sh

soak: libtorch
	cargo run --release --example soak

lint: libtorch
	cargo fmt --all --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --package tch-diffusers-python -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
	python3 scripts/pipelines_table.py --check

clean:
	rm -rf target .venv tests/fixtures/generated
