# Everything runs in .venv, which the first command makes. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3

BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test bench hallmarks clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# Threads that wait then sleep: where other programs want the cores too, spinning makes training several times slower.
demo test hallmarks bench: export OMP_WAIT_POLICY := PASSIVE

demo: $(INSTALLED)  ## train a ResNet-20 on real images and record its trajectory: about two minutes on two cores
	$(BIN)/python -m recipes.resnet.train fit --config recipes/resnet/demo.yaml
	@printf '\nSee it in TensorBoard:\n\n    $(BIN)/tensorboard --logdir logs\n\n'

test: $(INSTALLED)  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

hallmarks: $(INSTALLED)  ## train what it takes to judge the paper's claims: up to two hours on two cores; it can be interrupted
	$(BIN)/python -m recipes.hallmarks

bench: $(INSTALLED)  ## what recording costs, in multiples of something understood
	@for benchmark in benchmarks/[!_]*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

clean:  ## remove the environment and the caches; logs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("lightning_traj needs Python 3.11 or later, and \
	$(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,recipes,bench]'
	@touch $@
