# Each target sets up .venv by itself when needed. PYTHON is any Python 3.11 or newer.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
BIN := .venv/bin
INSTALLED := .venv/.installed
RUN ?= runs/sample
TORTURE_KILLS ?= 200
TORTURE_SEED ?= 0
FUZZ_CASES ?= 120000
STUDY := notebooks/04_overfitting_study.ipynb
KERNELS ?= 7.3.0 6.31.0
# Half of a test's time is waiting: three processes share the files of tests. TEST_OPTIONS= runs them in this one.
TEST_OPTIONS ?= -n 3 --dist loadfile --no-loadscope-reorder
# benchmarks/NAME.py, each a section of benchmarks/RESULTS.md
BENCHMARKS ?= engine shared_cores loop sampling start data kinds metrics view spending queue_cycles
BENCH_INSTALLED := .venv-bench/.installed
PEERS := build/templates
# The number of threads decides in which order PyTorch adds up; two make results repeatable on any machine that has them.
export OMP_NUM_THREADS ?= 2
export TINKER_TELEMETRY ?= 0

.PHONY: contract contract-tuft contract-skyrl docs templates study kernels torture help install train test fuzz check format lab bench bench-gpu lock clean

help:
	@echo "make train   train on the sample data and show what it made (RUN=$(RUN))"
	@echo "make test    run the tests, and the notebooks as tests"
	@echo "make study   run the overfitting study as a test, which takes minutes"
	@echo "make lab     open copies of the notebooks, in runs/lab, in JupyterLab"
	@echo "make bench   measure against peers, into benchmarks/RESULTS.md"
	@echo "make bench-gpu  the same for a GPU, printed"
	@echo "make fuzz    feed damaged files and requests to the readers and the server (FUZZ_CASES=$(FUZZ_CASES))"
	@echo "make contract ask a server what the project needs (URL=http://… MODEL=… ENGINE=…; docs/engines.md)"
	@echo "make contract-tuft, make contract-skyrl  install that engine, ask it, and train on it"
	@echo "make kernels use the training notebook with ipykernel $(KERNELS)"
	@echo "make check   ruff and mypy"
	@echo "make docs    write the tables of settings and figures into docs/"
	@echo "make templates  compare what is trained with TRL's and the cookbook's, into docs/templates.md"
	@echo "make format  let ruff rewrite what it can"
	@echo "make torture kill runs $(TORTURE_KILLS) times (TORTURE_KILLS, TORTURE_SEED), and compare what they make"
	@echo "make lock    resolve the dependencies anew into requirements.lock"

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || \
		{ echo "tinker_utils needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

train: $(INSTALLED)
	@mkdir -p $(RUN)
	@# The notebook's live view is not seen here: the run's log, as it is written, takes its place.
	@tail -n 0 -F $(RUN)/train.log 2>/dev/null & trap "kill $$!" EXIT; \
	$(BIN)/papermill notebooks/02_train.ipynb $(RUN)/train.ipynb --cwd notebooks --no-progress-bar \
		-p output_dir "$(patsubst $(HOME)/%,~/%,$(abspath $(RUN)))" -y '{overrides: {training.resume_from_checkpoint: false}}'
	@echo && echo "made:" && ls -1 $(RUN)/metrics.jsonl $(RUN)/training_curves.png $(RUN)/adapter/* $(RUN)/train.ipynb

# Beside each other, threads that wait must not keep a core busy; alone, a run is faster when they do.
test: export OMP_WAIT_POLICY ?= PASSIVE
# Hundreds of processes import the same modules, which would else be compiled in each where this variable is set.
test study train: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED)
	$(BIN)/python -m pytest $(TEST_OPTIONS)
	$(BIN)/python -m pytest --nbval notebooks --ignore $(STUDY) $(TEST_OPTIONS)

# The last of the notebooks trains for minutes, on all cores.
study: $(INSTALLED)
	$(BIN)/python -m pytest --nbval $(STUDY)

# The training notebook in a browser, with kernels of other versions than the one that is installed.
kernels: $(INSTALLED)
	for version in $(KERNELS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target build/kernels/$$version ipykernel==$$version && \
		PYTHONPATH=$(CURDIR)/build/kernels/$$version TINKER_UTILS_BROWSER=required \
			$(BIN)/python -m pytest tests/end_to_end/test_browser.py -k "every_control or not_heard" || exit 1; done

fuzz: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/fuzz/requirements.txt || \
		echo "atheris cannot be installed here: the campaign goes on without its guidance" >&2
	PYTHONPATH=tests $(BIN)/python -m fuzz --cases $(FUZZ_CASES)

contract: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m contract $(URL) --model $(MODEL) $(if $(ENGINE),--engine "$(ENGINE)")

contract-tuft contract-skyrl: contract-%: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m contract.engines $*

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python scripts/write_docs.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: $(INSTALLED)
	@mkdir -p runs/lab
	@# What is changed in a copy is seen by nobody else; one that is there stays as it is.
	@for notebook in notebooks/*.ipynb; do \
		test -e runs/lab/$$(basename $$notebook) || cp $$notebook runs/lab/; done
	@# Jupyter refuses to run as root, as one is in a container, unless told that it may.
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/runs/lab/02_train.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

torture: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m torture --kills $(TORTURE_KILLS) --seed $(TORTURE_SEED)

bench: $(INSTALLED) $(BENCH_INSTALLED)
	$(BIN)/python benchmarks/write_results.py $(BENCHMARKS)

bench-gpu: $(INSTALLED) $(BENCH_INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(GPU_OPTIONS)

# TRL has dependencies of its own; the project's are not changed for it.
$(BENCH_INSTALLED): benchmarks/requirements-trl.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Both packages are unpacked beside the environment, without dependencies of their own.
templates: $(INSTALLED) $(PEERS)/.installed
	PYTHONPATH=$(CURDIR)/$(PEERS) $(BIN)/python benchmarks/templates.py

$(PEERS)/.installed: benchmarks/requirements-templates.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(PEERS) --requirement $<
	@touch $@

lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet ".[local,datasets,notebook,dev]"
	build/lock/bin/python -m pip freeze --all --exclude tinker-utils --exclude pip | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf .venv .venv-bench build runs
