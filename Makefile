# make demo   from nothing to a trained audio-visual model and its report
# make test   the whole test suite
# make soak   the long checks, about an hour; the tests run them small
# All build first. PYTHON= chooses the interpreter, VENV= the environment's folder, JOBS= how many test processes.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= logical
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/* kernels/*/*.h kernels/*/*.inl kernels/*/*.cpp kernels/*/*.cu kernels/*/*.cuh)

.PHONY: build demo test bench soak lint clean
build: $(VENV)/.built

# Two steps: torch first, because the second is built against it, without isolation.
$(VENV)/.tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch numpy setuptools wheel ninja pybind11
	touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[train,plots,tb,dev]"
	$(PY) -m avfast env
	touch $@

demo: build
	$(PY) -m avfast demo --out demo

# Modules side by side on every core, in the order of tests/conftest.py. Threads must not spin while they wait: they would
# starve each other.
test: build
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Refuses to record on a busy machine; see benches/README.md.
bench: build
	$(PY) -m avfast.benches.run --threads 1,2 --json bench.json
	$(PY) -m avfast.benches.report bench.json

# Keeps its table in benches/SOAK.md; Ctrl-C keeps what is done.
soak: build
	$(PY) -m avfast.benches.soak.run --record

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) build demo bench.json avfast/libavfast.so avfast/_native*.so *.egg-info
