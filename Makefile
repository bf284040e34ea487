# Everything runs in .venv, made from the lock. Needs make and Python 3.11, 3.12 or 3.13: the newest that runs is taken.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11; do $$p -c 'import venv, ensurepip' 2> /dev/null && echo $$p && break; done)
BIN := .venv/bin
EXTRAS := cpu,serve,trace,train,track,demo,encoders,multilingual,native,dev
# `make demo` takes a GroupLens folder at $RECSYS_DATA (or movies/ in it), else MovieLens from a package
ORIGIN := $(firstword $(dir $(wildcard $(RECSYS_DATA)/ratings.csv $(RECSYS_DATA)/movies/ratings.csv)))
DEMO := $(if $(ORIGIN),demo-posters,demo)
WITH := $(if $(ORIGIN),RECSYS__DATA__ORIGIN=$(ORIGIN))

.PHONY: demo demo-check demo-media demo-media-check media-bundle test soak coverage mutants system tools lint docs vendor examples smoke screenshots serve bench install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 with venv is on PATH: install one, or set PYTHON"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps aisfx  # its wheel pins an old numpy
	touch $@

demo: install  ## train on MovieLens and serve http://127.0.0.1:8000 until Ctrl-C; pictures follow when they are embedded
	$(WITH) $(BIN)/recsys data get $(DEMO)
	$(WITH) $(BIN)/recsys train $(DEMO)
	$(if $(ORIGIN),$(WITH) nice setsid sh -c '$(BIN)/recsys embed $(DEMO) && $(BIN)/recsys train $(DEMO)' > data/demo-pictures.log 2>&1 & \
	trap "kill -- -$$! 2> /dev/null" EXIT; trap : INT;) \
	$(BIN)/recsys serve

demo-check: install  ## train as `make demo` does, ask the service for a page, an answer and the effect of an event, and end
	$(WITH) $(BIN)/recsys data get $(DEMO)
	$(WITH) $(BIN)/recsys train $(DEMO)
	$(BIN)/python tests/demo_check.py

demo-media: media-bundle  ## pictures, texts and sounds of a Debian package, with simulated shoppers, served until Ctrl-C
	$(BIN)/recsys serve --log state/demo-media

demo-media-check: media-bundle  ## train as `make demo-media` does, check the service as `make demo-check` does, and end
	$(BIN)/python tests/demo_check.py

media-bundle: install
	$(BIN)/recsys data get demo-media
	$(BIN)/recsys embed demo-media
	$(BIN)/recsys train demo-media

test: install system tools  ## every test but the long ones; two processes, each takes whole files
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: install system tools  ## the tests that last more than 20 seconds: chaos, long loads
	$(BIN)/python -m pytest -m soak -n 2 --dist loadfile

coverage: install system tools  ## the tests once more, with the lines that they run; fails below the floor in pyproject.toml
	$(BIN)/python -m pytest --cov --cov-report term:skip-covered

PACKAGE ?= features
SAMPLE ?= 100
SEED ?= 0

mutants: install  ## small faults made in lines drawn at random: which ones do the tests not notice? PACKAGE=features SAMPLE=100 SEED=0
	$(BIN)/python tests/mutants.py $(PACKAGE) --sample $(SAMPLE) --seed $(SEED)

system:  ## what tests need beyond pip, where it may be installed
	sh tests/install_system.sh

tools: build/tools/installed  ## programs that tests run, in an environment of their own

build/tools/installed: tests/tools.txt
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/tools.txt
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini tests examples

docs: install  ## the API reference, from docstrings, into build/docs; a warning is an error
	$(BIN)/python -W error::UserWarning -m pdoc -o build/docs features recsys serving experiments '!.*[.]_'

vendor:  ## fetch the libraries of the pages again, at the versions in serving/static/vendor.sh
	sh serving/static/vendor.sh

examples: install  ## run the scripts in examples/
	set -e; for script in examples/*.py; do echo "$$script"; $(BIN)/python "$$script"; done

smoke: install  ## build the wheel; install, import, train and serve it on this Python and on each other one that is there
	sh tests/smoke.sh

screenshots: install  ## pictures of every page, of what is trained (make demo-media), into docs/images
	$(BIN)/python tests/screenshots.py

serve: install
	$(BIN)/recsys serve

bench: install
	$(BIN)/recsys bench all --short

clean:  ## what can be made again; never state/, which holds accepted events, nor bundles/
	rm -rf .venv data build dist .pytest_cache .mypy_cache .ruff_cache
