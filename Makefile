# Every task of the house. Wants python3 (3.11 or newer), git and make; `make image` wants Docker.
.DEFAULT_GOAL := help
.PHONY: help cifar10 test check format lint types image run relay push-gcp push-aws push-azure start-gcp start-aws \
    start-azure reference sbom scan bench soak lock clean dev-env
MAKEFLAGS += --no-print-directory

# Yours to set: make cifar10 ARGS="--epochs 3" CIFAR10=cifar-10-binary.tar.gz; make image FLAVOUR=cpu
ARGS ?=
# Where CIFAR-10 comes from: an archive, a folder of pictures, an address, or `synthetic`. Empty: what is there
# already, else the official archive.
CIFAR10 ?=
FLAVOUR ?= cuda
BASE_IMAGE ?=
# Pretrained weights that the image bakes in: WEIGHTS="imagenet:resnet18 bert:bert-base-uncased"
WEIGHTS ?=
IMAGE ?= baton:$(FLAVOUR)
export PYTHON ?= python3
export CIFAR10 FLAVOUR BASE_IMAGE WEIGHTS IMAGE

VENV := .venv
BIN := $(VENV)/bin
SCRIPTS := $(wildcard make/*.sh launch/cloud-init/*.sh .ci/run)

help: ## this list
	@sed -n 's/^\([a-z0-9 -]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %s\n", sprintf(length($$1) > 9 ? "%s\n               %s" : "%-9s %s", $$1, $$2) }'

# Of a halt file the training tells, and the packing not too.
cifar10: ## train on CIFAR-10 here and now, or go on training; stop it with: touch halt/halt
	@make/venv.sh $(VENV) requirements.lock
	@mkdir -p halt
	@[ -e halt/halt ] || $(BIN)/python entrypoint.py data cifar10 --halt halt $(if $(CIFAR10),--source '$(CIFAR10)')
	@$(BIN)/python entrypoint.py cifar10 --halt halt $(ARGS)

test: dev-env ## every test; says what it skips and why. One of them: make test ARGS="-k NAME"
	@make/test.sh $(BIN)/python $(ARGS)

check: lint types ## what to run before each commit: lint, types, unit tests; about two minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n auto --dist worksteal tests/unit $(ARGS)

format: dev-env ## rewrite the Python files as ruff would have them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lint: dev-env ## ruff, shellcheck, hadolint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/shellcheck -x $(SCRIPTS)
	@$(BIN)/hadolint Dockerfile

types: dev-env ## mypy, strict
	@$(BIN)/mypy

image: ## build the image: FLAVOUR=cuda|cpu BASE_IMAGE=... CIFAR10=path|address|synthetic WEIGHTS=JOB:MODEL IMAGE=tag
	@make/image.sh

push-gcp push-aws push-azure: ## build if needed and push to the cloud's registry: TAG=tag, settings in launch/registries.env
	@make/push.sh $(@:push-%=%)

start-gcp start-aws start-azure: ## show how a spot VM is started that trains until it is done; GO=1 does it
	@make/start.sh $(@:start-%=%)

reference: dev-env ## write docs/reference.md anew from the code
	@mkdir -p .build && $(BIN)/python make/reference.py > .build/reference.md && mv .build/reference.md docs/reference.md

sbom: dev-env ## the Python packages of the image's lock, as CycloneDX: .build/sbom-FLAVOUR.json
	@mkdir -p .build
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o .build/sbom-$(FLAVOUR).json $(ARGS) \
	    $(if $(findstring cpu,$(FLAVOUR)),requirements-cpu.lock,requirements.lock)
	@echo .build/sbom-$(FLAVOUR).json

scan: dev-env ## look for secrets in every layer of IMAGE
	@$(BIN)/python make/scan.py $(IMAGE)

run: ## run the image on halt/ and store/ here: the same line again goes on with the run
	@mkdir -p halt store
	docker run --rm --user "$$(id -u):$$(id -g)" -v "$(CURDIR)/halt:/halt" -v "$(CURDIR)/store:/store" \
	    $(if $(findstring cuda,$(FLAVOUR)),$(if $(wildcard /dev/nvidiactl),--gpus all)) $(IMAGE) cifar10 $(ARGS)

# Yours to set: make relay SEED=3 STORE=s3 JOB=cifar10 ARGS="--logs". DATA: a folder with packed photographs, for imagenet
STORE ?= gs
JOB ?= cifar10
SEED ?=
DATA ?=
relay: dev-env ## one run over three simulated clouds, evicted and killed: STORE=gs|s3|az SEED=... ARGS=--logs
	@docker image inspect $(IMAGE) >/dev/null 2>&1 || { \
	    $(BIN)/python entrypoint.py data cifar10 $(if $(CIFAR10),--source '$(CIFAR10)') && $(MAKE) image; }
	@$(BIN)/python -m tests.relay --image '$(IMAGE)' --store '$(STORE)' --job '$(JOB)' $(if $(SEED),--seed $(SEED)) $(if $(DATA),--data '$(DATA)') $(ARGS)

bench: dev-env ## the figures that the README states, measured here, but for those of handover.py and best.py
	@$(BIN)/python entrypoint.py data cifar10 $(if $(CIFAR10),--source '$(CIFAR10)')
	@set -e; for figure in "startup" "loop_overhead" "determinism" "saving --rounds 8" "stores" \
	    "status" "watching" "eviction" "quick --seeds 5" \
	    "quick --seeds 5 --steps 60 --predecessor 1" "bert --short" "imagenet" "jobs"; do \
	    echo "== bench/$$figure"; $(BIN)/python bench/$${figure%% *}.py $$(echo "$$figure" | cut -s -d' ' -f2-); done

soak: dev-env ## the tests that kill, race and resume, in their whole counts, over and over: make soak ROUNDS=20
	@set -e; for round in $$(seq $(or $(ROUNDS),5)); do echo "== round $$round"; \
	    BATON_SOAK=1 BATON_SOAK_SEED=$$round $(BIN)/python -m pytest -rs \
	        tests/chaos tests/contract tests/relay tests/unit/test_retention_interleaved.py $(ARGS); done

LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --no-header --no-emit-index-url --no-emit-find-links
lock: dev-env ## choose dependencies' versions anew, into requirements*.lock; the CPU one wants PIP_FIND_LINKS, see its .in
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" UV_EXTRA_INDEX_URL="$${PIP_EXTRA_INDEX_URL:-}" \
	    $(LOCK) pyproject.toml --overrides requirements-cpu.in --no-emit-package torchvision -o requirements-cpu.lock
	@grep '^uv==' requirements-dev.lock | cut -d' ' -f1 | $(LOCK) - -o requirements-uv.lock
	@echo skypilot | $(LOCK) - -o launch/requirements-skypilot.lock

clean: ## delete what was built and cached here; the data, the store and the runs in it stay
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

dev-env:
	@make/venv.sh $(VENV) requirements-dev.lock
