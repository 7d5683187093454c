# Each target makes what it needs in .venv; PYTHON is any Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH := .venv/.bench

.PHONY: demo test lint operators bench-executor bench-allocation bench-figures bench-resnet50 bench-models \
	bench-curvature bench-sensitivity bench-ranges bench-peers \
	evidence bench-evidence clean

demo: $(STAMP)
	$(BIN)/amq demo -o out/demo

# Two workers with one thread each: torch and onnxruntime would otherwise fight over the cores.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

operators: $(STAMP)
	$(BIN)/python benchmarks/operators.py

bench-executor: $(BENCH)
	$(BIN)/python benchmarks/executor_speed.py

bench-allocation: $(STAMP)
	$(BIN)/python benchmarks/allocation_speed.py

# The figures on real models; AMQ_DATA names the folder with the models and data (benchmarks/README.md).
bench-figures: $(BENCH)
	$(BIN)/python benchmarks/figures.py

bench-resnet50: $(BENCH)
	$(BIN)/python benchmarks/resnet50.py

bench-models: $(BENCH)
	$(BIN)/python benchmarks/models.py

bench-curvature: $(BENCH)
	$(BIN)/python benchmarks/curvature.py

bench-sensitivity: $(BENCH)
	$(BIN)/python benchmarks/sensitivity.py

bench-ranges: $(BENCH)
	$(BIN)/python benchmarks/ranges.py

bench-peers: $(BENCH)
	$(BIN)/python benchmarks/peers.py

# docs/evidence.md from the figures in docs/evidence/; bench-evidence makes what is missing of these, for hours.
evidence: $(STAMP)
	$(BIN)/python benchmarks/evidence.py

bench-evidence: $(BENCH)
	$(BIN)/python benchmarks/evidence_runs.py
	$(BIN)/python benchmarks/evidence.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,demo]'
	touch $(STAMP)

# pytorchcv names packages that its networks don't need.
$(BENCH): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps pytorchcv
	touch $(BENCH)

clean:
	rm -rf .venv .venv-* out build *.egg-info
