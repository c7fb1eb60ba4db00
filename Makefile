# Two commands need nothing but Python 3.11, git and make: `make repro` and `make test`. Both call `setup`, which is done
# once and again only when the pins change.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.fmseg-installed
SCOPE ?= headline
TABLES ?=

# One thread a process: for models this small two processes beat two threads. glibc keeps large blocks instead of
# giving them back to the kernel, which would fault them in again at every step.
export OMP_NUM_THREADS ?= 1
export MALLOC_TRIM_THRESHOLD_ ?= 4000000000
export MALLOC_MMAP_THRESHOLD_ ?= 4000000000
export MALLOC_TOP_PAD_ ?= 268435456

.PHONY: help setup repro realdata rerun verify recertify smoke zoo zoo-smoke test lint lab book pipeline readme times clean
help:
	@echo "make repro       execute every notebook, regenerate every table and figure"
	@echo "make test        run the tests"
	@echo "make book        the notebooks, tables, figures and the ledger as a site, shown on localhost"
	@echo "make lab         open the notebooks in JupyterLab (outputs are not saved into the sources)"
	@echo "make verify      do the committed results belong to this code? seconds, no training"
	@echo "make rerun       train the headline tables again and compare; SCOPE=one: a run of every table; all"
	@echo "                 TABLES=freemask: only tables whose names begin so"
	@echo "make recertify   after a change that should not move numbers: certify the records for the new code"
	@echo "make smoke       every stage at smoke size, in a temporary copy"
	@echo "make zoo         train the zoo's models again: hours, resumable; zoo-smoke: minutes, in a temporary copy"
	@echo "make realdata    notebooks on photographs that lie on this machine (FMSEG_CAMVID)"
	@echo "make pipeline    write the dvc.yaml files;  make readme: fill README's tables;  make times: and its times"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "fmseg needs Python 3.11; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python lacks venv/ensurepip. On Debian or Ubuntu: apt-get install python3.11-venv"; exit 1; }
	@command -v git >/dev/null || { echo "git is missing. On Debian or Ubuntu: apt-get install git"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt -e '.[test]'
	@$(RUN) -c 'import cv2' 2>/dev/null \
	  || { echo "OpenCV cannot be imported. On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

repro: setup
	@$(RUN) -m fmseg.repro

smoke: setup
	@$(RUN) -m fmseg.repro --smoke

zoo: setup
	@$(RUN) -m fmseg.zoo_repro

zoo-smoke: setup
	@$(RUN) -m fmseg.zoo_repro --smoke

realdata: setup
	@$(RUN) -m fmseg.repro --realdata

rerun: setup
	@$(RUN) -m fmseg.rerun --scope $(SCOPE) --tables '$(TABLES)'

verify: setup
	@$(RUN) -m fmseg.verify

recertify: setup
	@$(RUN) -m fmseg.recertify

test: setup
	$(RUN) -m pytest

lint: setup
	$(VENV)/bin/ruff check .

lab: setup
	$(VENV)/bin/jupyter lab --FileContentsManager.pre_save_hook=fmseg.strip.pre_save notebooks/00_start_here.ipynb

book: setup
	@$(RUN) -m fmseg.repro book
	@$(RUN) -m fmseg.book --serve

pipeline: setup
	@$(RUN) -m fmseg.pipeline
	@$(RUN) -m fmseg.zoo_pipeline

readme: setup
	@$(RUN) -m fmseg.readme

times: setup
	@$(RUN) -m fmseg.readme --times

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
