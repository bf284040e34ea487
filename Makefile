# Everything runs in .venv, made from the lock; needs Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
# threads: OpenMP reads this once, at start
export OMP_NUM_THREADS ?= $(shell nproc)
# `make demo` takes a GroupLens folder at $RECSYS_DATA (or movies/ in it), else MovieLens from a package
ORIGIN := $(firstword $(dir $(wildcard $(RECSYS_DATA)/ratings.csv $(RECSYS_DATA)/movies/ratings.csv)))
DEMO := $(if $(ORIGIN),demo-posters,demo)
WITH := $(if $(ORIGIN),RECSYS__DATA__ORIGIN=$(ORIGIN))

.PHONY: demo demo-check test system lint serve bench install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,demo,encoders,multilingual,native,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps aisfx  # its wheel pins an old numpy
	touch $@

demo: install  ## train on MovieLens and serve http://127.0.0.1:8000 until Ctrl-C; pictures are taken in when ready
	$(WITH) $(BIN)/recsys data get $(DEMO)
	$(WITH) $(BIN)/recsys train $(DEMO)
	$(if $(ORIGIN),$(WITH) nice setsid sh -c '$(BIN)/recsys embed $(DEMO) && $(BIN)/recsys train $(DEMO)' > data/demo-pictures.log 2>&1 & \
	trap "kill -- -$$! 2> /dev/null" EXIT; trap : INT;) \
	$(BIN)/recsys serve

demo-check: install  ## the same, asks the service for a page, an answer and an event's effect, and ends
	$(WITH) $(BIN)/recsys data get $(DEMO)
	$(WITH) $(BIN)/recsys train $(DEMO)
	$(BIN)/python tests/demo_check.py

test: install system
	$(BIN)/python -m pytest

system:  ## what tests need beyond pip, where we may install it
	sh tests/install_system.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: install
	$(BIN)/recsys serve

bench: install
	$(BIN)/recsys bench all --short

clean:  ## what can be made again; never state/, which holds accepted events, nor bundles/
	rm -rf .venv data .pytest_cache .mypy_cache .ruff_cache
