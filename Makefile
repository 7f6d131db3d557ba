# make demo   install what the quickstart needs, run it, print its table and where the report is
# make test   install everything for development and run the whole test suite
# make book   run the notebooks and make the book of them and of all documents: build/book/site/index.html
# make lab    open JupyterLab on the notebooks        make app   open the workbench alone, without code
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -q -c constraints.txt $(PIP_FLAGS)

# A Triton server and its client, for the tests that start it; without their own requirements, which contradict ours (numpy 1,
# older protobuf and ml-dtypes). There are none for other systems than Linux on x86-64: those tests are skipped then.
TRITON := nvidia-pytriton tritonclient grpcio geventhttpclient gevent greenlet python-rapidjson brotli zope.event zope.interface
# An experiment tracker that keeps runs on this machine; it wants an older pillow.
TRACKIO := trackio gradio_client orjson httptools python-dotenv python-multipart uvloop watchfiles

.PHONY: demo test check unit rtx ray notebooks book gallery lab app clean

demo: $(VENV)/.demo
	$(BIN)/python -m workbench demo

test: check unit book

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	$(BIN)/nbstripout --verify notebooks/*.ipynb

# Two at once: most tests wait for a process that starts; those that measure take turns.
unit: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Every shipped model under every recipe, through NVIDIA's builder (no GPU; Linux on x86-64). About six minutes on two cores.
rtx: $(VENV)/.test
	$(BIN)/python -m pytest -m rtx_all

# A Ray cluster in one machine, of which a part is killed. Ray gives its own helpers 15 seconds to start: let nothing else run.
ray: $(VENV)/.test
	$(INSTALL) -e ".[ray]"
	$(BIN)/python -m pytest -m ray

notebooks: $(VENV)/.test
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 --override-ini testpaths=notebooks notebooks

# The notebooks run, with all documents and what the docstrings say, as pages that need no network: build/book/site/index.html.
book: $(VENV)/.test
	$(BIN)/python docs/book/make.py build/book
	$(BIN)/python -m pytest -m book tests/book

# The pictures of docs/gallery.md, taken by the browser tests: a view that changed looks so there too. Needs Chromium.
gallery: $(VENV)/.test
	rm -rf .gallery && WORKBENCH_SCREENSHOTS=.gallery $(BIN)/python -m pytest -q tests/browser
	for name in $$(grep -o 'gallery/[a-z_]*' docs/gallery.md | cut -d/ -f2 | sort -u); do cp .gallery/$$name.png docs/gallery/; done

lab: $(VENV)/.lab
	WORKBENCH_HOME=$(CURDIR)/.workbench $(BIN)/jupyter lab notebooks

app: $(VENV)/.lab
	WORKBENCH_HOME=$(CURDIR)/.workbench $(BIN)/python -m workbench app

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages; a change of the requirements installs again.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e ".[cpu,notebook]"
	touch $@

$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch -e ".[cpu,lab,torch]"
	touch $@

# torch first and alone: once it is there, nothing else pulls another build of it.
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch
	$(INSTALL) -e ".[test]"
	-$(INSTALL) --no-deps $(TRITON)
	-$(INSTALL) --no-deps $(TRACKIO)
	touch $@

clean:
	rm -rf $(VENV) .workbench build dist .pytest_cache .mypy_cache .ruff_cache
