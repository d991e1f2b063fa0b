# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell IFS=:; for p in python3.11 python3.12 python3.13 python3.10 python3 python \
		$$(for d in $$PATH; do ls -r "$$d"/python3.[1-9][0-9] 2>/dev/null; done); do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
GENERATE := $(VENV)/.generate
STAMP := $(VENV)/.installed
# Tests start many processes; without bytecode each compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo generate test dist lock nightly coverage lint bench gpu tables docs site extras faults mutants clean fuzz audit
demo: $(DEMO)
	$(BIN)/csaligner demo

generate: $(GENERATE)
	$(BIN)/csaligner generate-grid

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

# What takes long: every kill and every flipped bit, other inputs each night, each mutant.
nightly: test faults fuzz mutants
	CSALIGNER_HEAVY=1 CSALIGNER_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest -n auto tests/security tests/fuzz tests/store/test_parallel.py

# A wheel of one commit is the same to the byte wherever it is built: its times are those of the commit.
dist: $(STAMP)
	rm -rf dist build
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/wheel.py dist

# The versions that `make test` passed with: pip install --constraint constraints-tested.txt csaligner
lock: test
	$(BIN)/python tests/lock.py > constraints-tested.txt

coverage: $(STAMP)
	$(BIN)/python -m pytest -n auto --cov=csaligner --cov-report=term:skip-covered

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/loss.py --out benchmarks/results/loss.json
	$(BIN)/python benchmarks/token_loss.py --out benchmarks/results/token.json
	$(BIN)/python benchmarks/loss.py --sizes 16384 --repeats 1 --skip csaligner_mixed cdist checkpointed geomloss compiled keops \
		--out benchmarks/results/loss_16384.json
	$(BIN)/python benchmarks/scaling.py --out benchmarks/results/scaling.json --figure docs/scaling.svg
	$(BIN)/python benchmarks/numerics.py --out benchmarks/results/numerics.json
	$(BIN)/python benchmarks/search.py scale --rows 1000000 --approximate faiss exact ivf_rq
	$(BIN)/python benchmarks/growth.py

# on a machine with CUDA, torch and pytest; the tests of the trainer also need `pip install --editable .`
PYTHON_GPU ?= python3
gpu:
	PYTHONPATH=src $(PYTHON_GPU) -m pytest --noconftest -m gpu tests/ops/test_gpu.py tests/training/test_gpu.py
	PYTHONPATH=src $(PYTHON_GPU) benchmarks/gpu.py --out benchmarks/results/gpu.json

faults: $(STAMP)
	CSALIGNER_FAULT_KILLS=30 CSALIGNER_FAULT_RECORD=benchmarks/results/faults.json $(BIN)/python -m pytest tests/faults

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --seconds 600 --seed 20000 --out benchmarks/results/fuzz.json
	$(BIN)/python -m tests.security --heavy --out benchmarks/results/bad_inputs.json
	$(BIN)/python -m tests.inputs --out benchmarks/results/inputs.json

# needs a network: pip-audit asks the advisory database. SECURITY.md explains what is left out.
audit: $(STAMP)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet bandit pip-audit
	$(VENV)/audit/bin/bandit --quiet --recursive src --skip B101,B404,B603,B615
	$(VENV)/audit/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Measures the tables of README, results, comparison, search and metrics again: one to two hours, resumable.
# FEATURES: CLIP features of 500 COCO pairs; `python benchmarks/run_tables.py --list` prints the steps.
FEATURES ?= ../shared/data/clip_coco_500.npy
tables: $(STAMP)
	$(BIN)/python benchmarks/run_tables.py --features $(FEATURES)

docs: $(STAMP)
	$(BIN)/python benchmarks/tables.py

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tests/docs/links.py build/site

extras: $(STAMP)
	$(BIN)/python benchmarks/install.py --out benchmarks/results/install.json

$(DEMO): EXTRAS := bundled,search,app
$(GENERATE): EXTRAS := bundled
$(STAMP): EXTRAS := all,dev,docs

# One call of pip for each, as every call resolves all versions again; $(STAMP) has what the other two install.
$(DEMO) $(GENERATE) $(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: found no Python 3.10 or newer with venv and ensurepip on the PATH" \
		"(python3: $$(python3 --version 2>/dev/null || echo none)); install one (Debian: python3 and python3-venv)" \
		"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
	@test $@ != $(STAMP) || touch $(DEMO) $(GENERATE)

clean:
	rm -rf $(VENV) build dist *.egg-info
