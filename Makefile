# Everything a developer or a runner does here. Every target sets up what it needs: see tests/lab/bootstrap.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .build/venv/bin
# Namespaces and containers need root; whoever is not root gets there by sudo, and keeps the files root makes apart.
ROOT := $(if $(filter 0,$(shell id -u)),env,sudo --preserve-env env ANSIBLE_HOME=$(CURDIR)/.build/ansible-root)
PYTHON := $(VENV)/python
# Unit tests compute.
BOTH_CORES := --numprocesses 2 --dist loadfile
# Kernel tests wait more than they compute; a file has its namespaces to itself.
PARALLEL := --numprocesses 4 --dist loadfile
# Kernel tests of the forwarder, of packet filters and marks, of Ansible, and of the lab itself: no pyroute2 there, or nothing
# that others do not ask of it. What is new is not left out.
WITHOUT_PYROUTE2 := $(addprefix --ignore=tests/kernel/,forwarder ansible/test_inventories.py doctor/test_hidden_clients.py \
	doctor/test_foreign_marks.py marks/test_engines.py marks/test_deployed.py marks/test_tunnel.py)
ENVIRONMENT := $(PYTHON) -m tests.gates.environments
BOOTSTRAP := bash tests/lab/bootstrap.sh
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build/collections
export ANSIBLE_HOME := $(CURDIR)/.build/ansible
export PYTHONDONTWRITEBYTECODE := 1
unexport ANSIBLE_CONFIG

.PHONY: help demo demo-shell demo-down test test-all check lint unit units sanity importer kernel pyroute2 molecule deploy chaos bench bench-routing bench-keeper bench-idle bench-services package docs clean fuzz soak pythons forwarder-pythons

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: ## Raise the lab, run the real site playbook, and show the client's address in the backends' logs
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m tests.demo

demo-shell: ## Open a shell on a host of the demo: make demo-shell HOST=a
	@$(ROOT) $(PYTHON) -m tests.lab shell --prefix demo $(HOST)

demo-down: ## Remove the demo
	@$(ROOT) $(PYTHON) -m tests.lab down --prefix demo

# What both begin with; tests/run.sh says what the brackets mean. Stages with containers mostly wait, so the computing ones
# run at the same time. Kernel tests measure times: nothing runs at the same time as they do.
# `pythons` is part of `forwarder-pythons`, so test-all does not need it.
STAGES := lint unit package [ molecule deploy / docs units sanity importer ] kernel pyroute2

test: ## Run everything that decides whether we ship
	@bash tests/run.sh $(STAGES) pythons

# It goes on after a failure: the parts say nothing of each other, and nobody wants to wait for them again.
test-all: export PYTEST_ADDOPTS := -m 'slow or not slow'
test-all: ## Run everything there is, slow tests and benchmarks included, whatever it takes; a failure does not end it
	@KEEP_GOING=1 bash tests/run.sh $(STAGES) forwarder-pythons chaos soak fuzz bench-idle bench-routing bench-keeper bench-services bench

check: ## Run the quick part
	@bash tests/run.sh lint unit

lint: ## Check style (ruff, yamllint, ansible-lint), types (mypy), and that ansible-doc can read each plugin
	@$(BOOTSTRAP) check
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check --quiet .
	@$(PYTHON) -m mypy
	@$(VENV)/yamllint --strict .
	@PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/ansible-lint --profile production --offline
	@$(VENV)/ansible-doc --metadata-dump trueip.l4proxy >/dev/null

unit: ## The unit tests, which need no privileges
	@$(BOOTSTRAP) check
	@$(PYTHON) -m pytest -q $(BOTH_CORES) tests/unit

units: package ## The unit tests on the other Pythons that we support, and the archive's bytes by all of them
	@$(BOOTSTRAP) gates
	@$(ENVIRONMENT) py39 -m pytest -q $(BOTH_CORES) tests/unit/plugins/module_utils tests/unit/plugins/modules
	@$(ENVIRONMENT) --other py311 -m pytest -q $(BOTH_CORES) tests/unit
	@$(ENVIRONMENT) py313 -m pytest -q $(BOTH_CORES) tests/unit
	@$(PYTHON) -m pytest -q tests/gates/test_archive.py

sanity: ## ansible-test sanity
	@$(BOOTSTRAP) gates
	@bash tests/gates/sanity.sh

importer: package ## galaxy-importer on the tarball
	@bash tests/gates/importer.sh

kernel: ## The engines against the real kernel, in network namespaces; and the lab itself (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q $(PARALLEL) tests/kernel
	@$(ROOT) $(PYTHON) -m pytest -q tests/lab

# Debian 13's lies between Debian 12's and the one of .build/venv, which run everything: there it is what touches routes.
ROUTES := $(addprefix tests/kernel/,routing local_delivery return_path keeper ansible/test_policy_modules.py doctor/test_probe.py)

pyroute2: ## The kernel tests of routing with the pyroute2 of Debian 12, and those about routes with that of Debian 13 (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) L4PROXY_TEST_PYROUTE2=0.7.2 \
		$(ENVIRONMENT) pyroute2-0.7.2 -m pytest -q $(PARALLEL) tests/kernel $(WITHOUT_PYROUTE2)
	@$(ROOT) L4PROXY_TEST_PYROUTE2=0.8.1 $(ENVIRONMENT) pyroute2-0.8.1 -m pytest -q $(PARALLEL) $(ROUTES)

# What every Python has to show in `make test`: relaying by each family and protocol, bulk (3.9 has no splice), start and
# stop, reloads that exec, sessions that are handed over. The rest is in forwarder-pythons.
FEW_FORWARDER_TESTS := $(patsubst %,tests/kernel/forwarder/test_%.py,relay bulk lifecycle udp)

pythons: FORWARDER_TESTS := $(FEW_FORWARDER_TESTS)
pythons: other-pythons ## The forwarder's main tests, its archive run by the other Pythons that hosts have (root)

forwarder-pythons: FORWARDER_TESTS := tests/kernel/forwarder
forwarder-pythons: other-pythons ## All of the forwarder's kernel tests by the other Pythons that hosts have (root)

.PHONY: other-pythons
other-pythons:
	@$(BOOTSTRAP) lab
	@for version in 3.9 3.13; do python=$$($(PYTHON) -m tests.gates.interpreters $$version); \
		echo "the forwarder runs on $$python"; \
		$(ROOT) L4PROXY_TEST_PYTHON=$$python $(PYTHON) -m pytest -q $(PARALLEL) $(FORWARDER_TESTS); done

bench-routing: ## The routing engine with 500 backends and 16 proxies in one document (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.routing

chaos: ## What other tools, people and hardware do to a fleet under load, and how it heals (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q tests/chaos

bench-keeper: ## Memory and CPU of the keeper at rest and in a storm, and how quick it repairs (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.keeper

bench-idle: ## Memory and latency with 8,000 idle connections, CPU of 1,000 in which nothing moves; fails beyond a bound (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.idle

bench-services: ## Start, status, metrics and reload with up to 9,000 services; fails beyond a bound (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.services

package: ## Build the collection and install it as a user gets it, into .build/package
	@$(BOOTSTRAP) check
	@[ -n "$$L4PROXY_TEST_PACKAGE" ] || bash tests/package.sh

molecule: package ## Every scenario, against the built collection, in systemd containers (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PATH="$(CURDIR)/$(VENV):$$PATH" MOLECULE_COMMAND_BORDERS=0 $(VENV)/molecule test --all --report

deploy: package ## The built collection on the container lab under the newest ansible-core (root)
	@$(BOOTSTRAP) lab
	@$(BOOTSTRAP) gates
	@$(ROOT) $(PYTHON) -m pytest -q tests/gates/test_deploy.py

bench: ## The forwarder beside HAProxy and nginx, in one run: QUICK=1 for less, ONLY=REGEX for some of it, as ONLY='requests-64$|bulk', FROM=revision beside an earlier one (root)
	@$(BOOTSTRAP) bench
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections QUICK=$(QUICK) ONLY='$(value ONLY)' $(PYTHON) -m tests.bench
	@[ -n '$(value ONLY)' ] || $(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.checker $(if $(QUICK),6,20)

docs: ## Build the documentation as a site, .build/docs/html, and follow every link of it
	@$(BOOTSTRAP) docs
	@bash tests/docs/build.sh

SECONDS ?= 60
soak chaos bench: export FROM := $(FROM)
soak: ## Reload every second for SECONDS=60, upgrade three times, go to an earlier version (FROM=revision) and back, under load: nothing may be refused, reset or wrong (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench.soak $(SECONDS) $(if $(CONTROL),--control)

fuzz: ## Fuzz the parsers of what strangers send, SECONDS=60 each; the fuzzer is installed into .build/fuzz
	@bash tests/fuzz/run.sh $(SECONDS)

clean: ## Remove what the targets made, images and containers included
	@[ ! -x $(PYTHON) ] || $(ROOT) $(PYTHON) -m tests.lab clean
	@$(ROOT) rm -rf .build .hypothesis .pytest_cache .ruff_cache tests/output
