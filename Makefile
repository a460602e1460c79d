# Two commands do everything: `make test` and `make demo`. Each makes .venv by itself and is safe to repeat.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env test lint types demo demo-crnn demo-word2vec bench gpu kernel-table portfolios clean

help:
	@echo "make demo    train the tutorial's CNN on handwritten digits, ours beside torch's (out/demo/)"
	@echo "             options: make demo ARGS='--mnist DIR --dropout 0.25' (ARGS=--help lists them)"
	@echo "make demo-crnn   a CNN and a BiLSTM learn to read lines of digits (out/crnn/)"
	@echo "make demo-word2vec   word vectors of English text: neighbours, analogies, scores, a map (out/word2vec/)"
	@echo "make test    format, lint, types and all tests"
	@echo "make bench   time every op beside torch (pytest --benchmark)"
	@echo "make gpu     test and time on an NVIDIA GPU, nine minutes at most; uses this PYTHON's torch, installs nothing"
	@echo "             (out/gpu/; options: make gpu ARGS='--out DIR --quick', ARGS=--help lists them)"
	@echo "make kernel-table   compile every kernel for every GPU, without one, and write docs/kernels.md"
	@echo "             (make kernel-table ARGS=--check compares it)"
	@echo "make portfolios   write autotune/portfolios.json, the short lists that GPU defaults are chosen among"
	@echo "             (make portfolios ARGS=--check says what they cost on other layers)"
	@echo "make env     only make .venv"
	@echo "make clean   remove .venv and everything generated"

env: $(STAMP)

# torch first and pinned, so that the package's own requirement finds it and pulls in no second, larger build. The stamp
# is written last: an interrupted installation starts again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tilesmith needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,test]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m examples.digits_cnn $(ARGS)

demo-crnn: $(STAMP)
	$(BIN)/python -m examples.crnn $(ARGS)

demo-word2vec: $(STAMP)
	$(BIN)/python -m examples.word2vec $(ARGS)

# A worker a core: Triton's interpreter and the host run of CUDA kernels use one core each.
test: lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The folders are the packages tilesmith.kernels, .nn, .autotune and .cli; a type checker wants to see them so.
types: $(STAMP)
	@mkdir -p build/types/tilesmith
	@for package in kernels nn autotune cli; do ln -sfn ../../../$$package build/types/tilesmith/$$package; done
	MYPYPATH=build/types $(BIN)/mypy -p tilesmith.kernels -p tilesmith.nn -p tilesmith.autotune -p tilesmith.cli
	MYPYPATH=build/types $(BIN)/mypy examples tests benchmarks conftest.py

bench: $(STAMP)
	$(BIN)/python -m pytest --benchmark $(ARGS)

# No .venv: the torch, Triton and CuPy of a GPU machine are there already, and it may reach no network.
gpu:
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

kernel-table: $(STAMP)
	$(BIN)/python -m benchmarks.kernel_table $(ARGS)

portfolios: $(STAMP)
	$(BIN)/python -m benchmarks.portfolios $(ARGS)

clean:
	rm -rf $(VENV) build out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
