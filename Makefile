# make demo | test | lint | bench | docs | app DOMAIN=restoration ARGS="--port 7861"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOMAIN ?= restoration
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test test-slow lint bench docs app clean

demo: $(STAMP)
	$(BIN)/python -m tools.demo --output demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q
	@echo "All tests passed. Next: make demo, then open demo/index.html; make docs builds the site into site/."

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m tests.bench.bench_sampler_overhead
	$(BIN)/python -m tests.bench.bench_resshift_forward
	$(BIN)/python -m tests.bench.bench_super_resolution

docs: $(STAMP)
	$(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

app: $(STAMP)
	$(BIN)/python -m apps.$(DOMAIN) $(ARGS)

# One virtual environment, made anew only when a version or a dependency changes.
$(STAMP): constraints.txt pyproject.toml shared/pyproject.toml $(wildcard packages/*/pyproject.toml)
	@test -x $(BIN)/python || { echo "Making $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the tested versions (torch is large: a few minutes the first time) …"
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt --group dev \
		-e "./shared[train,plot,diffusers]" -e "./packages/restoration[train,eval]" -e "./packages/policy[train,envs]"
	@touch $(STAMP)

clean:
	rm -rf demo site build dist .pytest_cache .ruff_cache
