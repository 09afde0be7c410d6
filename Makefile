# Each target sets up what it needs first; set-up is skipped when it is done (scripts/setup.sh).
# PYTHON=python3.12 picks the interpreter, ARGS="..." adds flags: make train ARGS="--seed 1"

.DEFAULT_GOAL := help
.PHONY: help setup train test lint format

help: ## show this
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

setup: ## make .venv with everything in it
	@bash scripts/setup.sh

train: setup ## train the default model on a data set that needs no download
	.venv/bin/python scripts/train.py ncnc --dataset digits $(ARGS)

test: setup ## run all tests
	.venv/bin/pytest -n auto --dist worksteal $(ARGS)

lint: setup ## check style, types and generated text
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	bash scripts/typecheck.sh
	$(if $(wildcard scripts/readme.py),.venv/bin/python scripts/readme.py --check)

format: setup ## rewrite the code in the project's style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
