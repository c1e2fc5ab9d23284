# `make setup`, `make demo`, `make test`, `make simulate SEEDS=10000`, `make resume-test N=50`, `make chaos MINUTES=30`,
# `make bench-peers`; VENV, PYTHON and EXTRA (cpu or gpu) may be given.
VENV   ?= .venv
PYTHON ?= python3.11
EXTRA  ?= cpu
BIN    := $(VENV)/bin
SLOW   := ray or vllm or e2e
N      ?= 50
REAL   ?= 2
SEEDS  ?= 10000
MINUTES ?= 30

.PHONY: setup demo demo-controls test check simulate resume-test chaos lock bench-peers clean

setup:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "setup: $(PYTHON) is missing: install Python 3.11, or name one with make PYTHON=/path/to/python3.11 setup." >&2; \
	  exit 1; }
	@$(PYTHON) requirements/install.py --venv $(VENV) --extra $(EXTRA)

demo: setup
	$(BIN)/alphadrive demo

demo-controls: setup
	$(BIN)/alphadrive demo --controls

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m "not ($(SLOW) or gpu)"
	$(BIN)/python -m pytest -m "($(SLOW)) and not gpu"

resume-test: setup
	$(BIN)/python benchmarks/resume_kills.py --kills $(N) --real-kills $(REAL)

chaos: setup
	$(BIN)/python benchmarks/chaos.py --minutes $(MINUTES)

simulate: setup
	PYTHONPATH=tests $(BIN)/python -m simulation --seeds $(SEEDS)

lock: setup
	$(BIN)/python requirements/lock.py

bench-peers: setup
	@$(PYTHON) requirements/install.py --venv .venv-peers --extra peers
	$(BIN)/python benchmarks/peer_trl.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
