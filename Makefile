# make smoke and make test set up .venv by themselves; both work as the first command ever typed.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: help setup smoke test reliability lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make smoke   train a small model on the bundled corpus and let it write (about a minute after set-up)"
	@echo "make test    run the tests"
	@echo "make reliability   run the long batteries of docs/RELIABILITY.md (about 20 minutes)"
	@echo "make lint    check style and types"
	@echo "make docs    write docs/CONFIG_REFERENCE.md and docs/config.schema.json from the schema"
	@echo "make setup   only set up $(VENV), which the others do when it is missing"
	@echo "make clean   remove $(VENV) and all caches; runs are kept"

setup: $(READY)

# torch goes first and alone, so that nothing else pulls another build of it.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV), once; this downloads packages and takes a few minutes"
	@$(PYTHON) -m venv $(VENV) || { echo "no venv here: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "  1/2 torch"
	@$(RUN) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	@echo "  2/2 everything else in requirements.txt"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
	@echo "set up"

smoke: $(READY)
	@echo "== training config_smoke.yaml"
	@$(RUN) train.py --config config_smoke.yaml
	@echo
	@echo "== what it writes: infer.py --ckpt checkpoints/final.ckpt --prompt 'Attention is'"
	@$(RUN) infer.py --ckpt checkpoints/final.ckpt --prompt "Attention is" --max-new-tokens 200 --temperature 0.7 --seed 1

test: $(READY)
	@echo "== running the tests (several minutes on 2 cores)"
	@$(RUN) -m pytest -n auto

reliability: $(READY)
	@echo "== kill, cut, flip, fill and mistype (about 20 minutes on 2 cores)"
	@$(RUN) -m pytest --long tests/reliability

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(READY)
	$(RUN) -m tools.config_docs

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
