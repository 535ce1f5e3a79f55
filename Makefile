# Two commands do everything on a fresh machine with Python 3.11 or later:
#   make demo   installs into .venv, distils the bundled digits, evaluates, writes pictures
#   make test   installs, lints, runs the test suite

PYTHON ?= python3
VENV := .venv
RUN := $(CURDIR)/$(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/installed
	cd Code && $(RUN) -u demo.py

test: $(VENV)/tested
	$(RUN) -m ruff check .
	$(RUN) -m pytest

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/tested: $(VENV)/installed requirements-test.txt
	$(RUN) -m pip install --quiet --requirement requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV)
