# Every target sets up .venv by itself, so `make smoke` works as the first command ever typed.
#
#   make smoke TORCH_INDEX=https://download.pytorch.org/whl/cpu   torch without CUDA's gigabytes

PYTHON      ?= python3
TORCH_INDEX ?=
VENV        := .venv
# What make bench compares with, and the texts that docs/DATA.md says how to get.
NANOGPT     ?= downloads/nanoGPT
TEXTS       ?= downloads
RUN         := $(VENV)/bin/python
# What a run needs (requirements.txt), and what tests need besides (requirements-dev.txt).
RUN_READY   := $(VENV)/.run-ready
DEV_READY   := $(VENV)/.dev-ready
INSTALL      = $(RUN) -m tools.install
# Without cached bytecode every process of the tests would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev smoke check test reliability bench lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make smoke         train a small model on the bundled corpus and let it write"
	@echo "make check         style, types and the quick tests: while you work"
	@echo "make test          all tests: before you send a change"
	@echo "make lint          style and types"
	@echo "make reliability   the long batteries of docs/RELIABILITY.md (more than half an hour)"
	@echo "make bench         the comparisons of docs/BENCHMARKS.md (an idle machine, an hour)"
	@echo "make docs          write what is generated in docs/: reference, schema, graph of rooms"
	@echo "make setup         only set up $(VENV) for runs; setup-dev: for tests, too"
	@echo "make clean         remove $(VENV) and all caches; runs are kept"

setup: $(RUN_READY)
setup-dev: $(DEV_READY)

# torch goes first and alone, so that nothing else pulls another build of it.
$(RUN_READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) was found."; \
		echo "Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV), once; this downloads packages and takes a few minutes"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "no venv here: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "  1/2 torch"
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"
	@echo "  2/2 the rest of requirements.txt"
	@$(INSTALL) -r requirements.txt
	@touch $@

$(DEV_READY): $(RUN_READY) requirements-dev.txt
	@echo "packages for tests: requirements-dev.txt"
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

smoke: $(RUN_READY)
	@echo "== training config_smoke.yaml"
	@$(RUN) train.py --config config_smoke.yaml
	@echo
	@echo "== sampling: infer.py --ckpt checkpoints/final.ckpt --prompt 'Attention is'"
	@$(RUN) infer.py --ckpt checkpoints/final.ckpt --prompt "Attention is" \
		--max-new-tokens 200 --temperature 0.7 --seed 1

check: lint
	$(RUN) -m pytest -q -n auto -m "not slow"

test: $(DEV_READY)
	@echo "== running the tests (several minutes on 2 cores)"
	@$(RUN) -m pytest -n auto

reliability: $(DEV_READY)
	@echo "== kill, cut, flip, fill and mistype (more than half an hour on 2 cores)"
	@$(RUN) -m pytest --long tests/reliability
	@$(RUN) -m pytest --long -m long --ignore tests/reliability

bench: $(DEV_READY)
	@test -f "$(NANOGPT)/train.py" || { echo "no nanoGPT in $(NANOGPT): git clone" \
		"https://github.com/karpathy/nanoGPT $(NANOGPT), or write NANOGPT=FOLDER"; exit 1; }
	@for text in tinyshakespeare.txt movie_reviews.jsonl wikitext2; do test -e "$(TEXTS)/$$text" \
		|| { echo "no $(TEXTS)/$$text: docs/DATA.md says how to get it"; exit 1; }; done
	-$(RUN) benchmarks/first_minute.py  # exits with 1 if it misses a goal, on a slow machine
	$(RUN) benchmarks/startup.py --nanogpt $(NANOGPT)
	$(RUN) benchmarks/loss_memory.py
	$(RUN) benchmarks/training_speed.py --nanogpt $(NANOGPT) --cores 1
	$(RUN) benchmarks/training_speed.py --nanogpt $(NANOGPT) --cores 2
	$(RUN) benchmarks/learning.py --nanogpt $(NANOGPT) --text $(TEXTS)/tinyshakespeare.txt
	$(RUN) benchmarks/ten_minutes.py --nanogpt $(NANOGPT) \
		--reviews $(TEXTS)/movie_reviews.jsonl --wikitext $(TEXTS)/wikitext2

lint: $(DEV_READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(RUN_READY)
	$(RUN) -m tools.config_docs
	$(RUN) -m tools.draw_rooms

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
