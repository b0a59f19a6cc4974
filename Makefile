# make setup   creates .venv and installs everything, ROS 2 included
# make test    set-up, lint, type check and tests, the node's on Jazzy's rclpy too, some on numpy 1; one summary line
# make test-jazzy  the latter alone
# make lint    set-up without ROS, lint and type check only
# make demo    the least set-up, then a synthetic drive detected, scored and shown in demo/;
#              with DATAROOT=... CHECKPOINT=... detection on that data set
# make demo-ros  set-up, then the same drive through the node over DDS, compared with the detector's own boxes
# make colcon  set-up, then colcon build, test and test-result, with the environment's Python
# make gpu     proves and measures everything that needs a GPU, in nine minutes, and writes gpu_report.md; runs without
#              set-up (docs/gpu.md). A dry run without a GPU: make gpu DEVICE=cpu SIZE=tiny
# make clean   removes .venv and everything that was built
# make help    says this
#
# Each target does its own set-up; one that has been done costs nothing (docs/installation.md). Settings of set-up:
#   TORCH=cpu or cuda  the builds of PyTorch; unless given, found out; TORCH_INDEX=... where those for CPUs are
#   PYTHON=...         the Python that .venv is made with; VERBOSE=1 shows what pip or uv says

PYTHON ?= python3
VENV := .venv

# `make test`: test processes with one computing thread each, and one more for the node's tests, which mostly wait;
# PYTEST_ARGS adds arguments to pytest, and where they choose tests only these run.
JOBS ?= 2
THREADS ?= 1
TIMEOUT ?= 900
PYTEST_ARGS ?=
# in the order of tests/conftest.py, which has the slow files first; xdist's own has those with most tests first
PYTEST := -n $(JOBS) --dist loadscope --no-loadscope-reorder --timeout $(TIMEOUT) --durations 10 $(PYTEST_ARGS)

# `make demo`: with DATAROOT that data set; CHECKPOINT: other weights than the demo's
DATAROOT ?=
VERSION ?= v1.0-mini
CHECKPOINT ?=
OUT ?= demo

# `make gpu`: folder of the complete reference outputs, folder of wheels, folder of the report
DEVICE ?= cuda
SIZE ?= full
GOLDENS ?=
WHEELS ?=
REPORT ?= .

.PHONY: setup base jazzy test test-jazzy lint colcon demo demo-ros gpu clean help
.DEFAULT_GOAL := setup

# The script itself cannot tell a Python that is too old to read it.
OLD := setup: error: Python 3.10 or later is needed: give one with PYTHON=...
SETUP := $(PYTHON) -c 'import sys; sys.version_info >= (3, 8) or sys.exit("$(OLD)")' && \
  $(PYTHON) scripts/setup_environment.py

setup:
	@$(SETUP) all

base:
	@$(SETUP) base

jazzy:
	@$(SETUP) jazzy

test:
	@$(SETUP) test
	@OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/python scripts/run_checks.py $(PYTEST)

test-jazzy: jazzy
	@OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/python scripts/run_checks.py --jazzy-only $(PYTEST)

lint: base
	@$(VENV)/bin/python scripts/run_checks.py --lint-only

# COLCON_TESTS: what `make colcon` gives to pytest; everything without what is slow, unless told otherwise.
COLCON_TESTS ?= -m 'not slow'
COLCON := $(VENV)/bin/python -m colcon
colcon: setup
	$(COLCON) build
	$(COLCON) test --return-code-on-test-failure --pytest-args $(COLCON_TESTS)
	$(COLCON) test-result

demo:
	@$(SETUP) demo
ifeq ($(DATAROOT),)
	@$(VENV)/bin/bevnext demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") --out "$(OUT)"
else ifeq ($(CHECKPOINT),)
	@echo "demo: DATAROOT goes with CHECKPOINT=...: the demo's own weights know the synthetic world only" >&2; exit 1
else
	@$(VENV)/bin/bevnext detect --dataroot "$(DATAROOT)" --version "$(VERSION)" \
	  --checkpoint "$(CHECKPOINT)" --out "$(OUT)"
endif

demo-ros: setup
	@$(VENV)/bin/python scripts/demo_ros.py $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

gpu:
	@$(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON)) -m bevnext_benchmarks.gpu --device $(DEVICE) \
	  --size $(SIZE) --goldens "$(GOLDENS)" --wheels "$(WHEELS)" --out "$(REPORT)"

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

clean:
	rm -rf $(VENV) build dist install log .checks .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
