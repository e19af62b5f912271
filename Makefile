# Everything runs in .venv, which the first target that needs it makes. Only Python 3.11 (or newer) and make are asked for.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/demo

.PHONY: help install demo test test-slow test-lowest check bench docs dist test-install audit clean

help:
	@echo "make demo    init-model, build, inspect and train on data_samples, on the CPU"
	@echo "make test    the tests (make test-slow: the long ones)"
	@echo "make test-lowest  builds and loads with the lowest versions that pyproject.toml allows"
	@echo "make check   ruff, mypy, generated files up to date"
	@echo "make bench   the benchmarks, each against its rival"
	@echo "make dist    wheel and sdist in dist/ (make test-install PYTHON=python3.13: the wheel in an environment of its own)"
	@echo "make audit   known vulnerabilities of the pinned versions; asks the package index"
	@echo "make docs    generated pages, and the documentation as a site in build/site"

install: $(STAMP)

# The stamp is younger than the two files that say what is installed, so the install runs once. The package itself is
# editable: its own edits need none.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash pipelines/demo.sh $(DEMO)

# Two processes, a file each at a time; the long tests (deaths at random moments, clusters, tutorials) are `make test-slow`.
test: $(STAMP)
	$(BIN)/python -m pytest tests -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest tests -m slow

# Bounds that nobody runs are guesses. uv chooses the lowest version of each direct dependency; what those need themselves is
# current. transformers 4.57 reads, plans, builds and loads (training asks for the bound of the extra), so tests of training
# are not among these. 6 GB, about 20 minutes on two cores.
LOWEST := build/lowest
LOWEST_EXTRAS := s3 report demo delta iceberg lance metrics
LOWEST_TOOLS := pytest hypothesis jsonschema sqlalchemy webdataset num2words build hatchling "moto[s3,server]"
LOWEST_TESTS := cli shard_hashes plan samples packing where lake_inputs hostile_tables sources pixel_codec inspect_verify repack observe \
  media_faults tokens
test-lowest: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	mkdir -p build
	$(BIN)/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --only-binary :all: \
	  $(LOWEST_EXTRAS:%=--extra %) pyproject.toml --output-file $(LOWEST).txt
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	$(BIN)/uv pip sync --quiet --python $(LOWEST)/bin/python $(LOWEST).txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --constraint $(LOWEST).txt $(LOWEST_TOOLS)
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider -m "not slow" $(LOWEST_TESTS:%=tests/test_%.py)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_rejects.py --check

# The rivals are named by OMNIPREP_BENCH_MODEL (a checkpoint folder), OMNIPREP_SWIFT_PYTHON (the Python of an environment with
# ms-swift 3.9.x) and OMNIPREP_RIVALS_PYTHON (of one with other loaders: benchmarks/rival_loaders.py); what needs one that is
# absent says so and is skipped.
BENCHMARKS := exact pack balance planner load load_rivals load_jpeg cli build parts profile_lines storage curves scale scale_workers worker_memory train_wait adapters gpu
bench: $(STAMP)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@echo "== goals"; $(BIN)/python benchmarks/summary.py
	@$(BIN)/python docs/make_tables.py

# What programs import, with its docstrings: build/api, which the site has as its page "Python API".
API := omniprep omniprep.data.dataset omniprep.data.sampler omniprep.data.collate omniprep.data.device omniprep.packing \
  omniprep.registry omniprep.config omniprep.train.config omniprep.errors omniprep.shards.schema omniprep.shards.writer \
  omniprep.shards.index omniprep.compiler.build omniprep.compiler.encode.single_row omniprep.compiler.repack omniprep.hub.upload omniprep.report.page

docs: $(STAMP)
	$(BIN)/python docs/make_rejects.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python -m pdoc --docformat google --output-directory build/api $(API)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict  # with --quiet it would count no warnings

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check twine
	$(BIN)/python -m twine check --strict dist/*

# The wheel as people get it, by any Python: make test-install PYTHON=python3.13. Several GB, for torch.
INSTALLED := build/installed
test-install: dist
	rm -rf $(INSTALLED)
	$(PYTHON) -m venv $(INSTALLED)/venv
	wheel=$$(ls dist/*.whl) && $(INSTALLED)/venv/bin/python -m pip install --quiet --disable-pip-version-check "$$wheel[train,demo,report]"
	cp -r data_samples pipelines $(INSTALLED)/
	PATH="$(CURDIR)/$(INSTALLED)/venv/bin:$$PATH" bash $(INSTALLED)/pipelines/demo.sh work

# --strict: a package that the index does not know, or an index that does not answer, is no clean result.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
