# make repro: the whole pipeline.  make test: lint, types, tests.  make bench: docs/performance.md.
# make test-oldest: the tests with the oldest supported versions (Python 3.10 to 3.12).
# make constraints: the newest versions of everything into constraints.txt (needs uv), for make test to judge.
# Each but the last first installs what it needs and byte-compiles it on all cores (pip would use one). Files meant for
# other versions of Python fail to compile, which does no harm.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
INSTALLED := $(VENV)/installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Not the default shell: with that, make 3.81 (macOS) looks for programs in the PATH it was started with.
SHELL := $(or $(shell command -v bash),/bin/sh)

.PHONY: repro test lint unit test-oldest bench install constraints clean

repro: $(INSTALLED)
	dvc repro
	@python -m stages.report

test: lint unit

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 pytest -n auto --dist loadfile --no-loadscope-reorder

test-oldest:
	$(MAKE) unit VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

bench: $(INSTALLED)
	python -m benchmarks.all

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-compile --disable-pip-version-check -c $(CONSTRAINTS) -e '.[pipeline,dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

constraints:
	uv pip compile -q --universal --upgrade --python-version 3.10 --extra pipeline --extra dev \
		--no-annotate --custom-compile-command 'make constraints' pyproject.toml -o constraints.txt

clean:
	rm -rf .venv .venv-oldest runs .resume
