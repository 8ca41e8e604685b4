# Two commands do everything on a fresh machine: `make course` and `make test`. Every other target is a part of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
# Tests run in as many processes as this machine has cores, four at most. Each file in one of them: what it prepares for its
# tests (a class graded) is prepared once. In their order: a process that has opened a browser for the site, which comes
# last, has an event loop running from there on, and no other test may begin one.
AT_ONCE ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: course test test-long test-gpu sanitize-gpu redteam-gpu mutants bench bench-gpu site pdf labs serve-site clean lint sandbox browser model env
.DEFAULT_GOAL := course

course: env sandbox            ## environment, doctor, labs, sample class graded with hidden tests, site
	@echo "== 2/5 what this machine can do"
	@$(BIN)/course doctor
	@echo "== 3/5 labs"
	@$(BIN)/course labs
	@echo "== 4/5 the sample class, graded with the hidden tests"
	@$(BIN)/course sample
	@echo "== 5/5 the site"
	@$(BIN)/course site
	@$(BIN)/course where

test: env sandbox browser model lint ## linters, types, all tests that need no GPU
	$(BIN)/python -m pytest $(AT_ONCE)

test-long: env model           ## a million operations, a million requests, 64 prompts in every way: long
	$(BIN)/python -m pytest -m long

mutants: env                   ## each known bug class: the test that knows it, and our own code broken until it notices
	$(BIN)/python -m tests.bugs

bench: env                     ## speed of memory, scheduler and simulator, kept in reference_impl/bench/results
	$(BIN)/python -m reference_impl.cli bench memory

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a GPU machine that has torch, triton, numpy, pytest and hypothesis of its own, and nothing of the course installed.
# With pytest-xdist in as many processes as the memory of its GPUs serves; the same tests one after the other without it.
test-gpu:                      ## everything that a GPU runner uses, on that runner's own Python
	$(PYTHON) -m pytest --durations 15 --durations-min 10 $$($(PYTHON) -c 'import importlib.util as u; from autograder.nvml import gpus; print(f"-n {12 * len(gpus())} --dist worksteal" * bool(u.find_spec("xdist")))') \
	    tests/reference_impl tests/bugs tests/hidden tests/labkit/lab4 tests/autograder/worker tests/autograder/sandbox \
	    tests/autograder/judge tests/autograder/runners tests/autograder/gpu tests/autograder/test_nvml.py
	$(PYTHON) -m pytest tests/autograder/gpu/test_clock.py tests/autograder/gpu/test_stand.py

# A process for each file of tests, so many at once, long files first: a sanitizer does not live with pytest-xdist. Racecheck
# takes minutes for each of three tests of prefill's long prompts.
sanitize-gpu:                  ## the kernels' tests under NVIDIA's compute-sanitizer: no bad access, no hazard in shared memory
	for tool in memcheck racecheck; do ls -S tests/reference_impl/attention/test_*.py | xargs -P 8 -I FILE \
	    compute-sanitizer --tool $$tool --target-processes all --error-exitcode 9 \
	    $(PYTHON) -m pytest FILE --examples 2 -q || exit 1; done

# Submissions at once on each GPU.
JOBS ?= 8
redteam-gpu:                   ## every submission of tests/submissions/ that has use for a GPU, graded on GPUs: no attack may gain
	mkdir -p .course
	PYTHONPATH=.:labs $(PYTHON) -m autograder.cli redteam --device cuda --lab lab4_paged_attention --jobs $(JOBS) \
	    --resume --json .course/redteam-gpu.json

# Without RESULTS records replace the book's, which argues with those of an H100: another kind of GPU's are better kept in a
# folder of their own.
bench-gpu:                     ## kernels, a batch job, clients, one budget of bytes: on a GPU machine's own Python, JSON into RESULTS
	$(if $(RESULTS),mkdir -p $(RESULTS))
	for suite in kernels offline serve budget; do PYTHONPATH=.:labs $(PYTHON) -m reference_impl.cli bench $$suite \
	    $(if $(RESULTS),--json $(RESULTS)/$$suite.json) || exit 1; done

site: env                      ## the book, into _build/html
	$(BIN)/course site

pdf: env browser               ## the book as one PDF, into _build/padding-to-paging.pdf
	$(BIN)/course pdf

labs: env                      ## student notebooks from solutions/
	$(BIN)/course labs

serve-site: env                ## the built book on http://localhost:8000
	$(BIN)/course serve --port $(PORT)

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "== 1/5 the environment (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "no virtual environment could be made; on Debian or Ubuntu run: sudo apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,grading,site,dev]'
	@touch $@

# $(call install,COMMAND,PACKAGE,WORDS): as root, try to install what gives COMMAND; where that cannot be (no root, no such
# package, no network), say WORDS and go on.
install = command -v $(1) >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2); fi >/dev/null 2>&1; \
	  command -v $(1) >/dev/null || echo "$(1) is not installed; $(3)"; }

# bubblewrap is the stronger sandbox. Without it, and without the rights to install it, util-linux's unshare is used.
sandbox:
	@$(call install,bwrap,bubblewrap,for the stronger sandbox run: sudo apt-get install bubblewrap)

# The tests of the built site drive Chromium; without it they are skipped and say so.
browser:
	@$(call install,chromium,chromium,the tests that drive the site will be skipped: sudo apt-get install chromium)

# The small real model that the engine is tested with. Without it those tests are skipped and say so.
model: env
	@$(BIN)/engine model get smollm2 || echo "the tests on a real model will be skipped"

clean:                         ## what the other targets made; the gradebook and submissions stay
	rm -rf _build $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info .course/source .course/evidence .course/sample .course/site-under-test chapters/_generated
