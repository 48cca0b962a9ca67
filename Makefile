# `make demo` and `make test` do everything. Each sets up .venv first if it is missing, not finished, of another Python or
# of older requirements. `make PYTHON=python3.12 demo` uses that Python.

BIN := .venv/bin
RUN := runs/demo
TEST_REQUIREMENTS := $(filter-out requirements/wandb.txt,$(wildcard requirements/*.txt))

# The last step of a set-up: can frames be drawn?
export MAKECMDGOALS
READY = test -f .venv/ready || { $(BIN)/python -c "import tools, wrappers.shared.backend as b; \
	tools.exit_on_bad_input(lambda: b.choose_backend() and None)" && touch .venv/ready; }

.PHONY: setup setup-tests demo test test-slow test-all test-precision gpu-check lint clean
.NOTPARALLEL:

setup:
	@sh requirements/venv.sh
	@$(READY)

# What the tests, all options of the commands and `make lint` need.
setup-tests:
	@sh requirements/venv.sh $(TEST_REQUIREMENTS)
	@$(READY)

# Co-trains on the dataset in examples/: pretraining, warm-up and two rounds on real simulators.
demo: setup
	$(BIN)/python co_training.py --source_task cheetah_run --target_task cheetah_downhill \
		--offline_traindir examples/cheetah_downhill --logdir $(RUN) --configs defaults dmc demo
	$(BIN)/python evaluate.py --logdir $(RUN) --episodes 3

# One process a core; the tests of one file stay together, so that its fixtures are made once. At the end: the reason of
# every skipped test, and the 25 tests that took longest.
PYTEST := $(BIN)/python -m pytest -q -rfEs --durations=25 -n auto --dist loadfile --no-loadscope-reorder

test: setup-tests
	$(PYTEST) -m "not slow"

# The tests marked `slow`: sweeps on Ray, the notebook, compiling, exports of every method.
test-slow: setup-tests
	$(PYTEST) -m slow

test-all: setup-tests
	$(PYTEST)

# `--precision auto` is float32 in the tests, on any processor. This repeats whole runs with bfloat16.
test-precision: setup-tests
	COWORLD_TEST_PRECISION=bfloat16 $(PYTEST) -m "precision and not slow"

# For a machine with a GPU: writes gpu-check.md, and fails if a check fails.
gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

lint: setup-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv $(RUN)
