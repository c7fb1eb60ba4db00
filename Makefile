# Two commands need nothing but Python 3.11, git and make: `make test`, and (with the pipeline) `make repro`.
# Both call `setup`, which is done once and again only when the pins change.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.fmseg-installed

# One thread a process: for models this small two processes beat two threads. glibc keeps large blocks instead of
# giving them back to the kernel, which would fault them in again at every step.
export OMP_NUM_THREADS ?= 1
export MALLOC_TRIM_THRESHOLD_ ?= 4000000000
export MALLOC_MMAP_THRESHOLD_ ?= 4000000000
export MALLOC_TOP_PAD_ ?= 268435456

.PHONY: setup test lint clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "fmseg needs Python 3.11; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python lacks venv/ensurepip. On Debian or Ubuntu: apt-get install python3.11-venv"; exit 1; }
	@command -v git >/dev/null || { echo "git is missing. On Debian or Ubuntu: apt-get install git"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	@$(VENV)/bin/python -c 'import cv2' 2>/dev/null \
	  || { echo "OpenCV cannot be imported. On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

test: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff check .

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
