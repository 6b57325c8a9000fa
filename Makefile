# The workbook's commands. `make` lists them; each sets up the environment in .venv first if it has to.
# Kept to what GNU make 3.81 (macOS) and a POSIX shell understand.

PYTHON ?= python3
WORKERS ?= 2

PY = .venv/bin/python
STAMP = .venv/.installed

.DEFAULT_GOAL = help
.PHONY: help workbook student slides test test-browser soak lint format lab lock clean

help:
	@echo "make workbook   execute the notebooks and print where the report is; options: make workbook ARGS='--help'"
	@echo "make student    write the notebooks without solutions and outputs to build/student"
	@echo "make slides     write each notebook as slides to build/slides"
	@echo "make test       lint, run every test, re-run every notebook and compare its outputs"
	@echo "make test-browser  the part of make test that drives the explorer in Chromium; says what is missing for it"
	@echo "make soak       repeat faults and sizes (signals, full disk, 100,000 records, ...) and print what was seen"
	@echo "make lab        open the notebooks in JupyterLab; options: make lab ARGS='--no-browser'"
	@echo "make lint       check style (ruff) and spelling (codespell)"
	@echo "make format     repair style (ruff)"
	@echo "make lock       renew constraints.txt with the newest versions that pyproject.toml admits"
	@echo "make clean      remove caches and builds; .venv and runs/ stay"
	@echo "Each sets up .venv first if needed (Python 3.11 or newer; another one: make test PYTHON=python3.12)."

# The environment: made when it is missing, brought up to date when the requirements or the pins changed.
# An environment without a working pip is half made, or its Python is gone: make it anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	        echo "'$(PYTHON)' is missing or older than Python 3.11. Name another one: make PYTHON=/path/to/python3.11"; \
	        exit 1; }; \
	    $(PYTHON) -m venv --clear .venv || { \
	        echo "Could not make .venv (on Debian and Ubuntu: apt install python3-venv)."; \
	        exit 1; }; }
	@echo "Setting up .venv: a few minutes and about 6 GB the first time, seconds after that."
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[notebooks,dev]" || { \
	    echo "Set-up failed. If the network was the reason, run make again; else remove .venv and run make again."; \
	    exit 1; }
	@touch $@

workbook: $(STAMP)
	@$(PY) -m simpool_lite run $(ARGS) || { \
	    echo "make workbook failed. See what it can do with: $(PY) -m simpool_lite run --help"; \
	    exit 1; }

student: $(STAMP)
	@$(PY) -m simpool_lite student $(ARGS) || { \
	    echo "make student failed. See what it can do with: $(PY) -m simpool_lite student --help"; \
	    exit 1; }

slides: $(STAMP)
	@$(PY) -m simpool_lite slides $(ARGS) || { \
	    echo "make slides failed. See what it can do with: $(PY) -m simpool_lite slides --help"; \
	    exit 1; }

# One pytest call for tests, doctests and notebooks, so that the two workers share all of it and one line
# sums it up. One thread each, or the workers would fight for the cores; nbval runs each notebook from top
# to bottom in one worker (loadfile) and holds every stored output against the new one. -rs says what was skipped
# and why: without Chromium the tests of the explorer in a browser are.
test: $(STAMP) lint
	@OMP_NUM_THREADS=1 $(PY) -m pytest --quiet -rs -n $(WORKERS) --dist loadfile --doctest-modules \
	    --nbval --nbval-current-env --nbval-cell-timeout=600 \
	    tests simpool_lite $(wildcard notebooks/*.ipynb) || { \
	    echo "make test failed. Re-run one test with:     $(PY) -m pytest tests/test_x.py -k name"; \
	    echo "                  or one notebook with:     $(PY) -m pytest --nbval --nbval-current-env notebooks/x.ipynb"; \
	    exit 1; }

# These tests are also part of make test, which skips them where there is no browser. This installs nothing, not even
# .venv, and says what is missing.
test-browser:
	@missing=; \
	    test -x $(PY) || missing="$$missing .venv (make test makes it)"; \
	    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	        || command -v google-chrome-stable >/dev/null || missing="$$missing chromium"; \
	    command -v chromedriver >/dev/null || missing="$$missing chromedriver"; \
	    test -z "$$missing" || { \
	        echo "make test-browser: missing:$$missing"; \
	        echo "On Debian and Ubuntu: apt install chromium chromium-driver"; \
	        exit 1; }
	@OMP_NUM_THREADS=1 $(PY) -m pytest --quiet tests/figures/test_explorer_browser.py || { \
	    echo "make test-browser failed. Re-run one test with:"; \
	    echo "    $(PY) -m pytest tests/figures/test_explorer_browser.py -k name"; \
	    exit 1; }

soak: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks.soak $(ARGS) || { \
	    echo "make soak saw more than is promised, see above; one part again: make soak ARGS=signals"; \
	    exit 1; }

lint: $(STAMP)
	@$(PY) -m ruff check --quiet . && $(PY) -m ruff format --quiet --check . && $(PY) -m codespell_lib || { \
	    echo "make lint failed. What can be repaired by itself is with: make format; words by hand"; \
	    exit 1; }

format: $(STAMP)
	@$(PY) -m ruff format --quiet . && $(PY) -m ruff check --quiet --fix . && $(PY) -m ruff format --quiet . || { \
	    echo "make format could not repair the above: edit those lines by hand."; \
	    exit 1; }

# JupyterLab asks the package index for a newer version of itself unless told not to.
lab: $(STAMP)
	@$(PY) -m jupyterlab \
	    --LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate $(ARGS) notebooks || { \
	    echo "JupyterLab did not start, for the reason above. Options go through ARGS: make lab ARGS=--port=8889"; \
	    exit 1; }

# A fresh environment without pins, written down. The head of the file stays.
lock:
	@echo "Resolving in a fresh environment: a few minutes and about 6 GB, which are removed again."
	@rm -rf build/lock && $(PYTHON) -m venv build/lock \
	    && build/lock/bin/python -m pip install -qq --disable-pip-version-check -e ".[notebooks,dev]" \
	    && build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable > build/lock/freeze.txt \
	    && { grep '^#' constraints.txt; cat build/lock/freeze.txt; } > build/lock/constraints.txt \
	    && mv build/lock/constraints.txt constraints.txt && rm -rf build/lock || { \
	    echo "make lock failed; constraints.txt is as it was."; \
	    exit 1; }
	@echo "constraints.txt is renewed. Put the new versions into environment.yml, too, and run: make test"

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
