# Each target sets up what it needs; a second call does no work again. PORT=8080 make app
# make deploy SPACE=user/name OPTIONS="--hardware t4-small --secret HF_TOKEN"
BIN := .venv/bin

.PHONY: app test lint types docs demo bench bench-gpu deploy fleet fleet-stop fleet-restart test-fleet

app: .venv/app.done
	$(BIN)/python app.py

test: .venv/dev.done
	$(BIN)/python -m scripts.browser
	$(BIN)/python -m pytest

lint: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.done
	$(BIN)/mypy

docs: .venv/dev.done
	$(BIN)/python -m cogapp -r docs/*.md

demo: .venv/train.done
	$(BIN)/python -m training.demo

bench: .venv/dev.done
	$(BIN)/python -m benchmarks

bench-gpu: .venv/dev.done
	$(BIN)/python -m benchmarks --gpu

deploy: .venv/app.done
	$(BIN)/python -m training deploy $(SPACE) $(OPTIONS)

# The fleet ends with this make, however that ends.
fleet: .venv/app.done .venv-fleet/fleet.done
	setpriv --pdeathsig TERM -- .venv-fleet/bin/python -m fleet start

fleet-stop fleet-restart: .venv-fleet/fleet.done
	.venv-fleet/bin/python -m fleet $(@:fleet-%=%)

test-fleet: .venv/dev.done .venv-fleet/fleet.done
	$(BIN)/python -m pytest -n 0 tests/test_engines.py tests/test_fleet_vllm.py -k vllm

.venv-fleet/fleet.done: requirements-fleet.txt fleet/locked.txt scripts/setup
	scripts/setup $< .venv-fleet --no-deps
	touch $@

.venv/app.done: requirements.txt
.venv/train.done: requirements.txt requirements-train.txt
.venv/dev.done: requirements.txt requirements-train.txt requirements-dev.txt

# PYTHON, if set, names the interpreter for .venv.
.venv/%.done: scripts/setup
	scripts/setup $(lastword $(filter requirements%,$^))
	touch $@
