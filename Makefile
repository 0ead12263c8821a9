# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPAT := .venv-compat
BARE := .venv-bare
SITE := .venv-site
# Compiled when the package is installed.
NATIVE := hatch_build.py vita_ckpt/storage/tensors/native.c
TEST_TOOLS := hatchling hypothesis jsonschema pytest-xdist junitparser markdown-it-py pytest PyYAML \
	sarif-pydantic
BROWSER := apt-get install -qy chromium-headless-shell fonts-dejavu-core
# More processes than there are processors: some tests wait for what is slow on purpose.
PROCESSES := $(shell expr $$(nproc) + 2)
TORTURERS := $(shell expr $$(nproc) \* 2)

# Hundreds of processes import the same modules: they are compiled once.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-compat test-bare lock torture pages picture browser site check lint format docs bench clean

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# A file of tests is one process's: several run at once.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# The same tests with the oldest version of everything that pyproject.toml allows, among them
# transformers 4.41.1, which VITA itself pins. Torch is the one that 'make test' has.
test-compat: $(COMPAT)/.installed
	OMP_NUM_THREADS=1 $(COMPAT)/bin/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# What works without the extra 'model', with the oldest versions too: no torch is installed there.
test-bare: $(BARE)/.installed
	$(BARE)/bin/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder -m "not torch and not torture" \
		tests/cli tests/core tests/checks tests/surgery

# What the action installs, with digests: asks PyPI.
lock: $(STAMP)
	$(BIN)/python .ci/lock.py

# Every system call killed and failed, every power cut, sixteen rivals, long fuzzing, pages in a
# browser: minutes.
torture: $(STAMP) browser
	command -v strace >/dev/null || apt-get install -y strace || sudo apt-get install -y strace
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TORTURERS) --dist load -m torture tests/torture tests/fuzz

# The pages of reports in a browser: contrast, keyboard, small screens, hostile names.
pages: $(STAMP) browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -m torture tests/torture/test_pages.py

# The picture in the README.
picture: $(STAMP) browser
	$(BIN)/python -m docs.picture

browser:
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || \
		$(BROWSER) || { apt-get -q update && $(BROWSER); } || sudo $(BROWSER)

check: lint test

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.words

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/python -m docs.generate

# The documentation as a site in build/site: strict, and offline once its tools are installed.
site: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet

bench: $(STAMP)
	$(BIN)/python benchmarks/foundation.py

clean:
	rm -rf $(VENV) $(COMPAT) $(BARE) $(SITE) build demo-out vita_ckpt/storage/tensors/native.so.1

# Every version is pinned by constraints.txt, the build's too: pip passes it on to its build environment.
$(STAMP): pyproject.toml $(NATIVE) constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install -q -e '.[dev]'
	@touch $@

$(COMPAT)/.installed: pyproject.toml $(NATIVE) constraints-compat.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	PIP_CONSTRAINT=constraints-compat.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(COMPAT)/bin/pip install -q -e '.[model]' peft $(TEST_TOOLS)
	@touch $@

$(BARE)/.installed: pyproject.toml $(NATIVE) constraints-compat.txt
	test -x $(BARE)/bin/python || $(PYTHON) -m venv $(BARE)
	PIP_CONSTRAINT=constraints-compat.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(BARE)/bin/pip install -q -e . $(TEST_TOOLS)
	@touch $@

$(SITE)/.installed: constraints-site.txt
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	PIP_CONSTRAINT=constraints-site.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(SITE)/bin/pip install -q mkdocs-material
	@touch $@
