# Each target sets up what it needs; a second call does no work again. PORT=8080 make app
# make deploy SPACE=user/name OPTIONS="--hardware t4-small --secret HF_TOKEN"
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test lint demo bench deploy

app: .venv/app.done
	$(BIN)/python app.py

test: .venv/dev.done
	$(BIN)/python -m pytest

lint: .venv/dev.done
	$(BIN)/ruff check .

demo: .venv/dev.done
	$(BIN)/python -m training.demo

bench: .venv/dev.done
	$(BIN)/python -m benchmarks.first_questions
	$(BIN)/python -m benchmarks.at_once
	$(BIN)/python -m benchmarks.isolation
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.many_adapters
	$(BIN)/python -m benchmarks.speech_time
	$(BIN)/python -m benchmarks.word_errors
	$(BIN)/python -m benchmarks.train

deploy: .venv/app.done
	$(BIN)/python -m training deploy $(SPACE) $(OPTIONS)

.venv/app.done: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/dev.done: requirements-dev.txt requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
