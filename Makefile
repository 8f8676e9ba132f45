# `make labels` and `make test` set up .venv first; everything is installed from pinned versions.
PYTHON ?= python3.11
CONFIG ?= configs/labels/quickstart.yaml
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup labels train music probe-sets evidence test test-all lint schema mutants bench-labels bench-model bench-teachers bench-loader bench-scale bench-gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make labels [AUDIO=/music] [OUT=data/mine] [CONFIG=configs/labels/encodec.yaml] [ARGS=--dry-run]"
	@echo "make train [SIZE=2.5m|6m|22m|95m|330m or CONFIG=configs/pretrain/small.yaml] [ARGS='--set run.name=mine']"
	@echo "make stats [OUT=data/mine] [ARGS='--where \"rms_db < -50\"']   what is in it, and OUT/report/index.html"
	@echo "make music       fetch the larger corpus (8 hours) to music/"
	@echo "make probe-sets  fetch and render the audio of the bundled tasks (examples/probes) to probe-sets/"
	@echo "make evidence    the experiments of docs/evidence.md: hours on two cores, goes on where it was stopped"
	@echo "make test        the tests; make test-all adds the slow ones"
	@echo "make schema      write configs/schema/ and docs/configuration.md anew, after a change of settings"
	@echo "make mutants     one small defect at a time in the critical modules: a test must fail for each (hours)"
	@echo "make bench-teachers"
	@echo "make bench-loader"
	@echo "make bench-labels bench-model bench-scale"
	@echo "make bench-gpu   what one card does, in 8 minutes: rows for docs/speed.csv"

setup: $(VENV)/.ready

# torch comes first, with what its build needs. requirements.txt is complete without torchaudio, which encodec
# requires, its model does not need, and no CPU build of torch can load: hence --no-deps.
$(VENV)/.ready: pyproject.toml requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "overtone needs Python 3.11 or later: install it, or name it with PYTHON=…" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (some minutes the first time)"
	@$(PIP) "$$(grep '^torch==' requirements.txt)"
	@$(PIP) --no-deps -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

labels: setup
	@$(BIN)/overtone labels $(CONFIG) $(if $(AUDIO),--audio "$(AUDIO)") $(if $(OUT),--out "$(OUT)") $(ARGS)

train: CONFIG = configs/pretrain/$(if $(SIZE),ladder/$(SIZE),quickstart).yaml
train: setup
	@$(BIN)/overtone train $(CONFIG) $(ARGS)

stats: setup
	@$(BIN)/overtone stats $(or $(OUT),data/quickstart) $(ARGS)

music: setup
	@$(BIN)/python -m examples.music.fetch music $(ARGS)

probe-sets: setup
	@$(PIP) --no-deps -r examples/probes/requirements.txt
	@$(BIN)/python -m examples.probes.fetch probe-sets $(ARGS)

evidence: setup
	@$(BIN)/python -m examples.evidence runs/evidence --corpus data/mel_rvq --tasks probe-sets $(ARGS)

test: setup
	@$(BIN)/python -m pytest

test-all: setup
	@$(BIN)/python -m pytest -m "slow or not slow"

mutants: setup
	@$(BIN)/python -m tests.mutation $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

schema: setup
	@$(BIN)/python -m configs.schema

bench-labels: setup
	@$(BIN)/python -m tests.bench.bench_labels

bench-model: setup
	@$(BIN)/python -m tests.bench.bench_model $(ARGS)

bench-teachers: setup
	@$(BIN)/python -m tests.bench.bench_teachers $(ARGS)

bench-scale: setup
	@$(BIN)/python -m tests.bench.bench_scale $(ARGS)

bench-gpu: setup
	@$(BIN)/python -m tests.bench.bench_gpu $(ARGS)

bench-loader: setup
	@$(BIN)/python -m tests.bench.bench_loader $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info
