# make repro: the whole pipeline.  make test: lint, types, tests.  make bench: docs/performance.md.
# Each installs what it needs first.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test bench install clean

repro: $(INSTALLED)
	dvc repro
	@python -m stages.report

test: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 pytest -n auto --dist loadfile --no-loadscope-reorder

bench: $(INSTALLED)
	python -m benchmarks.all

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs .resume
