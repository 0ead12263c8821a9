# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPAT := .venv-compat
# One process more than there are processors: some tests wait for what is slow on purpose.
PROCESSES := $(shell expr $$(nproc) + 1)

.PHONY: demo test test-compat torture check lint format docs bench clean

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# A file of tests is one process's: several run at once.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile

# The same tests in the environment that VITA itself pins: transformers 4.41.1.
test-compat: $(COMPAT)/.installed
	OMP_NUM_THREADS=1 $(COMPAT)/bin/pytest -n $(PROCESSES) --dist loadfile

# Every system call killed and failed, every power cut, sixteen rivals, long fuzzing: minutes.
torture: $(STAMP)
	command -v strace >/dev/null || apt-get install -y strace || sudo apt-get install -y strace
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist load -m torture tests/torture tests/fuzz

check: lint test

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/python -m docs.generate

bench: $(STAMP)
	$(BIN)/python benchmarks/foundation.py

clean:
	rm -rf $(VENV) $(COMPAT) demo-out

# Every version is pinned by constraints.txt, the build's too: pip passes it on to its build environment.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install -q -e '.[dev]'
	@touch $@

$(COMPAT)/.installed: pyproject.toml constraints-compat.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	PIP_CONSTRAINT=constraints-compat.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(COMPAT)/bin/pip install -q -e '.[model]' hatchling hypothesis jsonschema pytest-xdist \
		junitparser markdown-it-py pytest PyYAML sarif-pydantic
	@touch $@
