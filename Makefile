# Everything that a developer or a CI runner calls. Each target installs what it needs: see tests/lab/bootstrap.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .build/venv/bin
# Namespaces and containers need root. For other users sudo runs those commands, with a separate directory for the files
# that root creates.
ROOT := $(if $(filter 0,$(shell id -u)),env,sudo --preserve-env env ANSIBLE_HOME=$(CURDIR)/.build/ansible-root)
PYTHON := $(VENV)/python
# Unit tests keep the CPU busy: one process for each core.
BOTH_CORES := --numprocesses 2 --dist loadfile
# Kernel tests mostly wait: more processes than cores. Tests of one file share namespaces, so one process runs them.
# tests/kernel/conftest.py says which files start first.
PARALLEL := --numprocesses 4 --dist loadfile --no-loadscope-reorder
# Bytecode is kept in .build for stages that start thousands of processes of this tree: an eighth of their CPU time. Not for
# molecule, whose hosts have these variables too, but other files.
CACHED := env --unset=PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/.build/pycache
# A whole stage of kernel tests: those that fail run once more, alone.
KERNEL := $(CACHED) $(PYTHON) -m tests.gates.once_more -q $(PARALLEL)
# The tests that a target runs: make kernel TESTS='FILE -k NAME'
TESTS :=
ENVIRONMENT := $(PYTHON) -m tests.gates.environments
BENCH := PYTHONPATH=$(CURDIR)/.build/collections $(PYTHON) -m tests.bench
BOOTSTRAP := bash tests/lab/bootstrap.sh
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build/collections
export ANSIBLE_HOME := $(CURDIR)/.build/ansible
export PYTHONDONTWRITEBYTECODE := 1
unexport ANSIBLE_CONFIG

.PHONY: $(shell grep -oE '^[a-z0-9-]+:' $(MAKEFILE_LIST) | tr -d :)

help: ## List the targets
	@sed -nE -e 's/^##@ /\n/p' -e 's/^([a-z0-9-]+):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 22

##@ Every day

check: ## Run lint and unit: half a minute, before each commit
	@bash tests/run.sh lint unit

lint: ## Check style (ruff, yamllint, ansible-lint), types (mypy), and that ansible-doc can read each plugin
	@$(BOOTSTRAP) check
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check --quiet .
	@$(PYTHON) -m mypy
	@$(VENV)/yamllint --strict .
	@PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/ansible-lint --profile production --offline
	@$(VENV)/ansible-doc --metadata-dump trueip.l4proxy >/dev/null

unit: ## Run the unit tests, or some: TESTS='FILE -k NAME'; they need no root
	@$(BOOTSTRAP) check
	@$(CACHED) $(PYTHON) -m pytest -q $(if $(TESTS),$(TESTS),$(BOTH_CORES) tests/unit)

kernel: ## Run the kernel tests in network namespaces, or some: TESTS='FILE -k NAME' (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(if $(TESTS),$(PYTHON) -m pytest -q $(TESTS),$(KERNEL) tests/kernel)

lab: ## Run the tests of the lab itself, of namespaces and of containers (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q tests/lab

demo: ## Start the lab, deploy it with the site playbook, show the client's address in the backends' logs (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m tests.demo

demo-shell: ## Open a shell on a host of the demo: HOST=a (root)
	@$(ROOT) $(PYTHON) -m tests.lab shell --prefix demo $(HOST)

demo-down: ## Remove the demo (root)
	@$(ROOT) $(PYTHON) -m tests.lab down --prefix demo

docs: ## Build the documentation into .build/docs/html, and check each link
	@$(BOOTSTRAP) docs
	@bash tests/docs/build.sh

clean: ## Remove all that the targets created, images and containers included (root)
	@[ ! -x $(PYTHON) ] || $(ROOT) $(PYTHON) -m tests.lab clean
	@$(ROOT) rm -rf .build .hypothesis .pytest_cache .ruff_cache tests/output

##@ Before a change is merged

# Stages of both test and test-all; tests/run.sh explains the brackets. Stages with containers mostly wait, so stages that
# compute and the kernel tests of routing run at the same time. The forwarder's kernel tests measure times, so nothing else
# runs at the same time.
STAGES := lint unit package [ molecule-operations / molecule-default molecule-strategies lab / docs units sanity importer pyroute2 molecule-first_tier ] kernel

test: ## Run all tests that a change must pass: half an hour; CI runs this (root)
	@bash tests/run.sh $(STAGES) [ python-3.9 / python-3.13 ]

# The oldest and the newest Python: what one between them lacks, the oldest lacks too, and what it no longer has, nor has the newest.
# Debian 12's 3.11 runs `make unit` and molecule's hosts. Hosts need only module_utils and modules, so the oldest runs no other.
units: package ## Run the unit tests of plugins and roles on Python 3.9 and 3.13, and check that each builds the same archive
	@$(BOOTSTRAP) gates
	@$(ENVIRONMENT) py39 -m pytest -q $(BOTH_CORES) tests/unit/plugins/module_utils tests/unit/plugins/modules
	@$(ENVIRONMENT) py313 -m pytest -q $(BOTH_CORES) tests/unit/plugins tests/unit/roles
	@$(PYTHON) -m pytest -q tests/gates/test_archive.py

sanity: ## Run ansible-test sanity
	@$(BOOTSTRAP) gates
	@bash tests/gates/sanity.sh

package: ## Build the collection and install it into .build/package, as a user gets it
	@$(BOOTSTRAP) check
	@[ -n "$${L4PROXY_TEST_PACKAGE-}" ] || bash tests/package.sh

importer: package ## Check the package with Galaxy's importer
	@bash tests/gates/importer.sh

molecule: package ## Run each molecule scenario with the package, in systemd containers (root)
	@$(BOOTSTRAP) lab
	@$(BOOTSTRAP) gates
	@$(ROOT) PATH="$(CURDIR)/$(VENV):$$PATH" MOLECULE_COMMAND_BORDERS=0 $(VENV)/molecule test --report $(or $(SCENARIO),--all)

molecule-%: # one scenario
	@$(MAKE) --no-print-directory molecule SCENARIO='--scenario-name $*'

# The tests that use each call of pyroute2, which only adds and removes routes; with Debian 12's, which differs most from that of
# .build/venv. The hosts of molecule have that of Debian 12 or 13.
ROUTES := $(addprefix tests/kernel/,routing ansible/test_policy_modules.py) --ignore=tests/kernel/routing/test_services.py
pyroute2: pyroute2-0.7.2 ## Run the kernel tests of routes with pyroute2 of Debian 12 (root)

pyroute2-%: # the same with one version
	@$(BOOTSTRAP) lab
	@$(ROOT) L4PROXY_TEST_PYROUTE2=$* $(CACHED) $(ENVIRONMENT) pyroute2-$* -m pytest -q $(PARALLEL) $(ROUTES)

# The tests in which Python versions may differ: relaying in each family and protocol, bulk (3.9 has no splice), start and
# stop, reloads that exec, UDP sessions that are handed over.
FORWARDER_TESTS := $(patsubst %,tests/kernel/forwarder/test_%.py,relay bulk lifecycle reload udp)
pythons: python-3.9 python-3.13 ## Run the forwarder's main kernel tests with the archive on Python 3.9 and 3.13 (root)

python-%: # the same on one of them
	@$(BOOTSTRAP) lab
	@python=$$($(PYTHON) -m tests.gates.interpreters $*); echo "the forwarder runs on $$python"; \
		$(ROOT) L4PROXY_TEST_PYTHON=$$python $(KERNEL) $(FORWARDER_TESTS)

##@ Before a release

# forwarder-pythons includes pythons, and routing-pyroute2 includes pyroute2. The stages do not depend on each
# other, so all run even if one fails.
test-all: export PYTEST_ADDOPTS := -m 'slow or not slow'
test-all: ## Run everything, slow tests and benchmarks included, even after a failure: more than two hours (root)
	@KEEP_GOING=1 bash tests/run.sh $(STAGES) routing-pyroute2 forwarder-pythons chaos walk takeover first-tier soak fuzz bench-idle bench-routing bench-keeper bench-services bench

# All but those that do not depend on pyroute2. A new file is included.
routing-pyroute2: ROUTES := tests/kernel $(addprefix --ignore=tests/kernel/,forwarder datapath ansible/test_inventories.py \
	doctor/test_hidden_clients.py doctor/test_foreign_marks.py marks/test_engines.py marks/test_deployed.py marks/test_tunnel.py)
routing-pyroute2: pyroute2-0.7.2 pyroute2-0.8.1 ## Run all kernel tests of routing with pyroute2 of Debian 12 and 13 (root)

forwarder-pythons: FORWARDER_TESTS := tests/kernel/forwarder
forwarder-pythons: python-3.9 python-3.13 ## Run all kernel tests of the forwarder with the archive on Python 3.9 and 3.13 (root)

SECONDS ?= 60
soak chaos bench: export FROM := $(FROM)
chaos: ## Let other tools, people and hardware disturb a fleet under load, and measure how fast it heals; FROM=REVISION (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q tests/chaos

walk: ## Walk through docs/operations under a steady load; no connection may fail or break; WORKERS=1, SETTLE=35 (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q tests/walk

takeover: ## Move 1,000 long streams from one proxy to another, in several ways; prints how many are lost, and how late (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q --capture=no tests/takeover

first-tier: ## Cut the power of proxies with keepalived and BGP, make them unhealthy, upgrade them; REPETITIONS=20 (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(PYTHON) -m pytest -q tests/first_tier

soak: ## Reload every second and upgrade under load; no connection may fail; SECONDS=60, WORKERS=1, FROM=REVISION, CONTROL=1 (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(BENCH).soak $(SECONDS) $(if $(CONTROL),--control)

fuzz: ## Fuzz the parsers of untrusted input, for SECONDS=60 each
	@bash tests/fuzz/run.sh $(SECONDS)

bench: ## Compare the forwarder with HAProxy and nginx; QUICK=1, ONLY='requests-64$|bulk', ROUNDS=7, FROM=REVISION (root)
	@$(BOOTSTRAP) bench
	@$(ROOT) QUICK=$(QUICK) ROUNDS=$(ROUNDS) ONLY='$(value ONLY)' $(BENCH)
	@[ -n '$(value ONLY)' ] || $(ROOT) $(BENCH).checker $(if $(QUICK),6,20)

bench-idle: ## Measure memory, latency and CPU with 8,000 idle connections; fails above its limits (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(BENCH).idle

bench-services: ## Measure start, status, metrics and reload with 9,000 services; fails above its limits (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(BENCH).services

bench-routing: ## Measure the routing engine with 500 backends and 16 proxies in one document (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(BENCH).routing

bench-keeper: ## Measure memory and CPU of the keeper at rest and during thousands of route changes, and how fast it repairs (root)
	@$(BOOTSTRAP) lab
	@$(ROOT) $(BENCH).keeper
