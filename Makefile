# Two commands do everything: `make demo` (the main job on bundled data) and `make test`. Both make .venv by themselves.
PYTHON ?= python3.11
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: demo test test-all check docs docs-site bench bench-smoke clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/finetune pretrain --recipe recipes/digits.yaml --set 'phases[0].epochs=10'
	$(BIN)/finetune adapt --from checkpoints/mnist.safetensors --target kmnist-sample --shots 10 --seeds 3 --jobs 2 --html

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Also what is marked slow: whole recipes against their recorded bytes, and longer ways to find what a quick test finds.
test-all: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m ''

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py
	@if $(BIN)/python -c 'import material, mkdocstrings, latex2mathml' 2>/dev/null; then $(BUILD_SITE); \
	else echo "docs site: not built, since the extra is not installed: $(BIN)/pip install -e '.[docs]'"; fi

docs: .venv/ready
	$(BIN)/python -m finetune.cli.docs > docs/commands.md
	$(BIN)/python -m finetune.recipe.docs > docs/recipes.md
	$(BIN)/python -m finetune.recipe.docs --json > docs/recipe.schema.json
	$(BIN)/python tests/support/rooms.py > docs/rooms.svg

# The docs site, into site/: from docs/, without a network, any dead link an error.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file .mkdocs.yml

docs-site: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BUILD_SITE)
	@echo "made site/index.html; for its search: $(BIN)/python -m http.server --directory site"

# Against its peers, on an idle machine, for hours; ROUNDS=2 took 55 minutes. benchmarks/bench.py runs single races.
# MNIST has to be in FINETUNE_DATA_ROOT. The first time it makes the peers' environments, 8 GB.
bench: .venv/ready
	$(BIN)/python benchmarks/bench.py $(if $(ROUNDS),--rounds $(ROUNDS))

bench-smoke: .venv/ready
	$(BIN)/python benchmarks/bench.py --smoke

clean:
	rm -rf .venv runs site benchmarks/.envs benchmarks/.work
