# Two commands for a newcomer: `make demo` trains a network on real images, `make test` runs the tests.
# Both set up what they need the first time (.venv, system packages) and skip it afterwards.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What the extension and the metadata are made from: a change rebuilds, nothing else does.
BUILD  := setup.py pyproject.toml $(shell find csrc -type f -name '*.*')

.DEFAULT_GOAL := help
.PHONY: help demo setup clean lint test test-all sanitize bench bench-gpu docs dist

help: ## this list
	@awk -F ':.*## ' '/^##/ {print "\n" substr($$0, 4)} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

## to begin with

demo: setup ## train DHM on Fashion-MNIST, a few minutes on two cores
	$(BIN)/fastdhm train

setup: $(VENV)/.installed ## what the others begin with: .venv, system packages, the C++ extension

# The system packages are optional (without them: the torch loader, and a download), so nothing here fails for their sake.
$(VENV)/.installed: $(BUILD) tools/system_packages.sh
	sh tools/system_packages.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet "torch>=2.6" torchvision
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@$(BIN)/python tools/build_report.py
	if pkg-config --exists opencv4 libturbojpeg; then $(BIN)/python -m pip install --quiet "ffcv>=1.0.2" \
	    || echo "fastdhm: FFCV could not be built; the torch loader will feed the images"; fi
	touch $@

clean: ## remove the set-up and what was built; runs/ and data stay
	rm -rf $(VENV) build dist *.egg-info fastdhm/_C*.so

## before a commit

lint: setup ## style and type hints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	tools/types.sh $(BIN)/python

# One thread and one process a processor: they do not wait for each other, and each file's tests stay together. The files
# in their order: pytest-xdist would put those of few tests last, which are the long ones, and one process would wait.
SIDE_BY_SIDE = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder \
    -n $$($(BIN)/python -c "from fastdhm.system import processors; print(processors.count())")

test: setup ## the tests, minutes on two cores; what needs a GPU is skipped where there is none
	$(SIDE_BY_SIDE) -m "not slow"

test-all: test ## and the slow ones (killed runs, damaged files, compiling): a quarter of an hour more
	$(BIN)/python -m pytest -m slow

sanitize: setup ## the C++ ops under AddressSanitizer and UndefinedBehaviorSanitizer
	sh tools/sanitize.sh $(BIN)/python

## how fast it is

bench: setup ## against its peers and the eager reference, on this machine; results in bench/
	$(BIN)/fastdhm bench loss --sweep
	$(BIN)/fastdhm bench linear
	$(BIN)/fastdhm bench mask
	$(BIN)/fastdhm bench norm
	$(BIN)/fastdhm bench conv
	$(BIN)/fastdhm bench step --arch resnet32 --arch resnet50
	$(BIN)/fastdhm bench epoch --max-steps 200 --agreement 900
	$(BIN)/fastdhm bench loader
	$(BIN)/fastdhm bench scale
	$(BIN)/fastdhm bench startup
	$(BIN)/fastdhm bench accuracy

bench-gpu: ## all that needs an NVIDIA GPU, in 8 minutes, by this machine's torch; a page in bench/gpu
	PYTHON="$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))" tools/gpu_check.sh

## for others

# The extra's own packages alone: what is installed is not built again.
docs: setup ## the guide as a site; open site/index.html
	$(BIN)/python -m pip install --quiet "fastdhm[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

dist: setup ## source archive and wheel in dist/, installed and tried, minutes
	$(BIN)/python tools/dist.py
