# Everything runs in .venv, which is rebuilt when the pinned versions or the package's own description change.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= results
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# What makes machines of namespaces, logs in to them, and queues jobs there.
CLUSTER := iproute2 munge openssh-client openssh-server rsync slurm-wlm

.PHONY: install demo test test-all test-cluster lint bench constraints clean

install: .venv/installed
demo: install
	$(BIN)/isoratio launch sweeps/digits.yaml --store $(STORE)
	$(BIN)/isoratio invariance digits --store $(STORE)
	$(BIN)/isoratio invariance digits --metric lambda_max --store $(STORE)

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "not cluster"

test-cluster: lint  # as root, on Debian or Ubuntu: installs what it needs; elsewhere the tests say why they are skipped
	dpkg --status $(CLUSTER) > /dev/null 2>&1 || test "$$(id -u)" != 0 || ! command -v apt-get || \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(CLUSTER); }
	$(BIN)/pytest -m cluster -rs --durations 0 tests/cluster/real

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-bench
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/analysis.py
	$(BIN)/python benchmarks/scale.py

constraints: .venv/installed-test  # pins the newest versions that fit pyproject.toml, for every platform
	$(BIN)/pip install --quiet uv
	echo "torch==2.13.0" | $(BIN)/uv pip compile pyproject.toml --extra bench --universal --python-version 3.11 \
		--no-emit-index-url --no-header --upgrade --constraints - --output-file constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Isoratio needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-bench: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv
