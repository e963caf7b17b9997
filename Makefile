# make demo    runs the main job on real images, into a new folder under output/
# make test    runs the tests that take seconds; COVERAGE=1 notes which lines ran
# Both make the virtual environment .venv first if it is missing or pyproject.toml has changed.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow gpu export zoo lint types imports coverage docs bench clean

# The first of these that is Python 3.11 or later and can make virtual environments; or say PYTHON=...
PYTHONS := python3 python python3.13 python3.12 python3.11 python3.14
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do "$$p" -c '$(USABLE)' 2>/dev/null && { echo "$$p"; break; }; done)

VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= 2
PYTEST := $(RUN) -m pytest -n $(JOBS) --dist worksteal
OUTPUT ?= output/demo-$(shell date +%Y%m%d-%H%M%S)
SOURCES := $(shell find jaxprune tests -name '*.py')

help:
	@echo 'make demo      train, prune and compare on real images; OUTPUT=folder chooses where to'
	@echo 'make test      the tests; make slow: those that take minutes; make gpu: those that need a GPU'
	@echo 'make export    tests of other runtimes, ONNX and IREE, in an environment of their own, .venv-export'
	@echo 'make zoo       what slimming removes from many networks, Flax models of transformers too, in .venv-zoo'
	@echo 'make lint      style and format; make types: pyright; make imports: which room may import which'
	@echo 'make coverage  branch coverage of the tests, at least 90 %'
	@echo 'make docs      the documentation site, into docs/_build/html'
	@echo 'make bench     the benchmarks, as tables and JSON in output/bench'
	@echo 'make clean     remove .venv and the caches'

# Each stamp is newer than pyproject.toml once pip has ended well, so nothing is installed twice. Python compiles a module
# when it is first imported; compiling all of them here takes as long as installing them.
$(VENV)/made:
	@test -n "$(PYTHON)" || { echo 'jaxprune needs Python 3.11 or later with the modules venv and ensurepip' \
	  '(Debian: apt install python3-venv); none was found. Name one: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@"$(PYTHON)" -c '$(USABLE)' || { echo 'PYTHON=$(PYTHON) is not Python 3.11 or later with the modules venv and' \
	  'ensurepip; name another: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/examples: $(VENV)/made pyproject.toml
	$(RUN) -m pip install --quiet --no-compile --editable '.[examples]'
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml
	$(RUN) -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $@

demo: $(VENV)/examples
	$(RUN) examples/demo.py --output '$(OUTPUT)'

# Compiling is most of what tests do. XLA's optimizations that take long are left out here, and are in `make slow`.
test: $(VENV)/dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) $(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0)

slow: $(VENV)/dev
	$(PYTEST) -m slow

gpu: $(VENV)/dev
	JAX_PLATFORMS=cuda,cpu $(RUN) -m pytest -m gpu

# jax2onnx pins an older Orbax than the other tests run with.
$(VENV)-export/made: $(VENV)/made pyproject.toml
	$(RUN) -m venv --clear $(VENV)-export
	$(VENV)-export/bin/python -m pip install --quiet --editable '.[export]' 'pytest>=9.0'
	@touch $@

export: $(VENV)-export/made
	$(VENV)-export/bin/python -m pytest -m slow tests/examples/test_export_example.py
	$(VENV)-export/bin/python -m pytest 'tests/test_readme.py' -k export

# The Flax models of transformers end with version 4.57.
$(VENV)-zoo/made: $(VENV)/made pyproject.toml
	$(RUN) -m venv --clear $(VENV)-zoo
	$(VENV)-zoo/bin/python -m pip install --quiet --editable . 'transformers==4.57.*' 'dm-haiku>=0.0.16' 'pytest>=9.0'
	@touch $@

zoo: $(VENV)-zoo/made
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(VENV)-zoo/bin/python -m pytest -m 'slow or not slow' tests/slimming/test_optional.py
	$(VENV)-zoo/bin/python -m tests.slimming.zoo.table

lint: $(VENV)/dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(VENV)/dev
	$(RUN) -m pyright --pythonpath $(RUN)

imports: $(VENV)/dev
	$(RUN) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

# Runs the tests only when a source is newer than what they last noted.
coverage: .coverage
	$(RUN) -m coverage report

.coverage: $(SOURCES) | $(VENV)/dev
	$(MAKE) test COVERAGE=1

docs: $(VENV)/dev
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/dev
	@mkdir -p output/bench
	for b in benchmarks/bench_*.py; do $(RUN) "$$b" || exit 1; done

clean:
	rm -rf $(VENV) $(VENV)-export $(VENV)-zoo .coverage* .pytest_cache .ruff_cache .import_linter_cache .hypothesis
