# Two commands matter to a newcomer: `make demo` and `make test`. Each sets up all it needs.
#
# The virtual environment is .venv in the clone. What is slow to make and outlives a clone (cargo's
# target directory, the RocksDB archive, the demo's vectors) is in $VECMQ_CACHE_DIR, by default
# ~/.cache/vecmq. Which variables a build needs is known to _build/environment.py alone.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
RUN := $(VENV_PYTHON) _build/environment.py run --
RUN_ALONE := $(VENV_PYTHON) _build/environment.py run --alone --
RUN_CORE := $(VENV_PYTHON) _build/environment.py run --core --
CARGO_TEST := cargo test --locked
PROPTEST_SLOW ?= 4096
PROPTEST_FUZZ ?= 20000
KILLS ?= 1000
FAULTS ?= 20
# Most Python tests wait for processes, elections and time-outs; all need 10 minutes of CPU.
WORKERS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help build-dev build-prod demo lint format test test-core test-rust test-python test-slow \
        test-kills test-nats-faults bench bench-queue bench-nats bench-smoke bench-rust \
        bench-python bench-instructions peers fuzz check clean \
        venv-demo venv-check

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv-demo:
	@$(PYTHON) _build/setup_venv.py demo

venv-check:
	@$(PYTHON) _build/setup_venv.py check

build-prod: venv-demo  ## Build the extension with optimisation into .venv (editable)
	$(RUN_ALONE) maturin develop --release --locked --skip-install
	@$(RUN) $(VENV_PYTHON) _build/setup_venv.py editable release

build-dev: venv-demo  ## Build it without optimisation, to debug; importing it warns
	$(RUN_ALONE) maturin develop --locked --skip-install
	@$(RUN) $(VENV_PYTHON) _build/setup_venv.py editable dev

demo: build-prod  ## Set all up, send real embeddings over both routes and verify every bit
	.venv/bin/vecmq demo

lint: venv-check  ## rustfmt, clippy with and without Python, ruff, mypy, licences
	cargo fmt --check
	$(RUN_CORE) cargo clippy --locked --no-default-features --all-targets -- -D warnings
	$(RUN) cargo clippy --locked --all-targets -- -D warnings
	$(RUN) cargo clippy --locked --all-targets --features python -- -D warnings
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(VENV_PYTHON) _build/licences.py

format: venv-check  ## Format Rust and Python
	cargo fmt
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

test: test-core test-rust test-python  ## Set all up, run every test (slow ones apart)

test-core: venv-check  ## The fast loop: frame and router, without RocksDB and network crates
	$(RUN_CORE) $(CARGO_TEST) --no-default-features

# Debug profile: overflow and debug assertions are checked, and nothing waits for link-time
# optimisation. Dependencies are optimised in it too (Cargo.toml).
test-rust: venv-check  ## Every Rust test, debug profile
	$(RUN) $(CARGO_TEST)

# Release profile: what users run, and what `make demo` has built already.
test-python: venv-check build-prod  ## Every Python test, on the release build
	$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist worksteal

test-slow: venv-check build-prod  ## All that and the slow tests, with many more generated cases
	PROPTEST_CASES=$(PROPTEST_SLOW) $(RUN) $(CARGO_TEST)
	VECMQ_HYPOTHESIS=slow $(VENV_PYTHON) -m pytest -m "slow or not slow" --timeout 1200
	$(MAKE) test-kills
	$(MAKE) test-nats-faults

# 1,000 kills of a process that appends, acknowledges, deletes and purges; damage at ten times the
# positions; exits, forks, Ctrl-C, cancellation and full disks, each 20 times as often.
test-kills: venv-check build-prod  ## The faults of the queue, long: prints what was lost (nothing)
	VECMQ_KILLS=$(KILLS) $(RUN) $(CARGO_TEST) --test queue_kills -- --nocapture
	VECMQ_DAMAGE=10 $(RUN) $(CARGO_TEST) --test queue_damage -- --nocapture
	VECMQ_FAULTS=$(FAULTS) $(VENV_PYTHON) -m pytest -rP --timeout 1200 \
		tests/test_faults_disk.py tests/test_faults_process.py

# 1,000 kills of nats-server with 2,000 acknowledgements each; every other fault of the route and of
# a cluster 20 times as often.
test-nats-faults: venv-check build-prod  ## The faults of the NATS route, long: prints all counts
	VECMQ_NATS_KILLS=$(KILLS) VECMQ_FAULTS=$(FAULTS) $(VENV_PYTHON) -m pytest -rP \
		-o log_level=ERROR --timeout 7200 tests/test_nats_faults_*.py tests/test_nats_cluster.py

bench: build-prod  ## The four workloads on queue, nats and hybrid
	.venv/bin/vecmq bench table1

BENCH_QUEUE ?=
bench-queue: venv-check build-prod  ## The queue's goals against its peers (needs make peers)
	$(RUN) $(VENV_PYTHON) benches/queue_goals $(BENCH_QUEUE)

BENCH_NATS ?=
# A row of each kind.
SMOKE_NATS := 64KB-publish-window 64KB-pubsub-natsmq 1KB-async-nats 64KB-rust-vectored \
              5MB-core-vectored cpu-sent copies-64KB random-auto-raw sparse-auto-1Gb
bench-nats: venv-check build-prod  ## The NATS route's goals against its peers (needs make peers)
	$(RUN) $(VENV_PYTHON) benches/nats_goals $(BENCH_NATS)

bench-smoke: venv-check build-prod bench-instructions
	.venv/bin/vecmq bench table1 --scale 0.1
	$(RUN) cargo bench --locked --bench frame --bench router --bench queue -- --test
	$(RUN) $(VENV_PYTHON) benches/queue_goals --scale 0.01 --rounds 1
	$(RUN) $(VENV_PYTHON) benches/nats_goals --scale 0.01 --rounds 1 --only $(SMOKE_NATS)
	$(VENV_PYTHON) -m pytest benches/python --benchmark-disable

bench-rust: venv-demo  ## Micro-benchmarks of frame, router and queue (criterion)
	$(RUN) cargo bench --locked --bench frame --bench router --bench queue

bench-python: venv-check build-prod  ## Micro-benchmarks of the Python API (pytest-benchmark)
	$(VENV_PYTHON) -m pytest benches/python --benchmark-only

bench-instructions: venv-demo  ## Instructions of the hot paths against callgrind.json
	$(RUN_CORE) $(VENV_PYTHON) benches/callgrind.py

peers:  ## Build what `vecmq bench --peers` compares with; minutes, into the cache
	$(PYTHON) benches/peers/build.py

fuzz: venv-check  ## 20,000 generated cases for each property of the frame
	PROPTEST_CASES=$(PROPTEST_FUZZ) $(RUN_CORE) $(CARGO_TEST) --release \
		--no-default-features --test frame_props

check: lint test  ## What CI runs, without its short benchmark

clean:  ## Remove what was made in the clone; the cache stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist python/vecmq/*.so
	find python tests _build -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: $${VECMQ_CACHE_DIR:-$${XDG_CACHE_HOME:-$$HOME/.cache}/vecmq}"
