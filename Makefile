# Needs Python 3.11 or newer, git and make. Everything else goes into folders of this clone:
# .tools (uv), .venv (development), .demo and .bench (what their names say), .compat (other Airflows).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

UV_RANGE := >=0.9,<1
PYTHON_NAMES := python3 python python3.13 python3.12 python3.11 python3.14
PEER_VERSION := 5.1.0
LOCKED := uv.lock pyproject.toml agent/pyproject.toml server/pyproject.toml
SOURCES := $(shell find agent server -name node_modules -prune -o '(' -name '*.py' -o -name '*.ini' -o -path '*/static/*' \
	-o -name 'pyproject.toml' -o -name 'README.md' ')' -print)

# A virtual environment that happens to be active is none of our business.
unexport VIRTUAL_ENV
unexport PYTHONPATH
unexport PYTHONHOME

# Looked for once, and only when a target needs it. A name on PATH may be a shim without a Python behind it, so each is
# tried by running it.
ifndef PYTHON
PYTHON = $(eval PYTHON := $$(shell for name in $(PYTHON_NAMES); do \
	$$$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null </dev/null \
	&& $$$$name -c 'import sys; print(sys.executable)' && break; done))$(PYTHON)
endif

# The uv on PATH, if it is one that is known to work; else our own.
ifndef UV
UV := $(shell case "$$(uv --version 2>/dev/null)" in \
	("uv 0.9."*|"uv 0."[1-9][0-9]"."*) command -v uv;; \
	(*) echo .tools/bin/uv;; esac)
endif

# Other versions than the development environment's.
AIRFLOW := 3.2
AIRFLOW_TESTS := tests/integration/server $(addprefix tests/integration/end_to_end/,test_limits_and_runtimes.py \
	test_teams.py test_telemetry.py "test_end_to_end.py::test_a_dag_with_everything")
# The pages are tested in the development environment unless an Airflow is named.
UI_ENV = $(if $(filter command,$(firstword $(origin AIRFLOW))),.compat/airflow-$(AIRFLOW),.venv)
RUNTIMES := 1.1 1.2
# Agents of bench-fleet.
N := 200
SPACE := $(subst ,, )
# Airflow 3.2 does not start with what its own metadata allows: its api-server needs an older FastAPI and Cadwyn.
CONSTRAINTS_3.2 := "fastapi<0.137" "cadwyn<7.1"

UV_SYNC = UV_PYTHON_DOWNLOADS=never $(UV) sync --frozen --quiet --python "$(PYTHON)"
IN_VENV := .venv/bin

.PHONY: help
help: ## Show this list
	@echo "airflow-edge-agent: run Airflow tasks on machines far from Airflow."
	@echo
	@echo "  make demo    see it work: a real Airflow, a real agent, one Dag (a few minutes the first time)"
	@echo "  make test    check that it works"
	@echo
	@echo "All targets:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

.PHONY: setup
setup: .venv/ready ## Install the development environment into .venv

.PHONY: demo
demo: .demo/env-server/ready .demo/env-agent/ready .demo/env-runtime/ready ## Run a Dag on an edge agent; on a terminal it stays up until Ctrl-C
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 .demo/env-agent/bin/python -m demo

.PHONY: test
test: .venv/ready ## Run all tests: unit, property, contract, integration
	@$(IN_VENV)/pytest $(ARGS)

.PHONY: test-unit
test-unit: .venv/ready ## Run the tests that start no Airflow and no database
	@$(IN_VENV)/pytest -m "not integration" $(ARGS)

.PHONY: test-airflow
test-airflow: .compat/airflow-$(AIRFLOW)/ready ## Run the server's tests and a Dag on another Airflow: AIRFLOW=3.2
	@.compat/airflow-$(AIRFLOW)/bin/python -m pytest $(AIRFLOW_TESTS) $(ARGS)

.PHONY: test-fab
test-fab: .compat/fab/ready ## Test who may look and who may change with Flask AppBuilder's auth manager
	@.compat/fab/bin/python -m pytest tests/integration/server/test_fab_rights.py $(ARGS)

.PHONY: test-runtimes
test-runtimes: .venv/ready $(RUNTIMES:%=.compat/runtime-%/ready) ## Run the demo's Dag in task runtimes of older Airflows: RUNTIMES="1.1 1.2"
	@EDGE_TEST_RUNTIMES="$(subst $(SPACE),:,$(RUNTIMES:%=$(CURDIR)/.compat/runtime-%)):$(CURDIR)/.venv" \
		$(IN_VENV)/pytest tests/integration/end_to_end/test_task_runtimes.py $(ARGS)

.PHONY: test-faults
test-faults: .venv/ready ## Break things while tasks run, and check that nothing is lost; SEEDS=3, ARGS=--help shows the rest
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 SEEDS="$(SEEDS)" $(IN_VENV)/python -m faults $(ARGS)

.PHONY: fuzz
fuzz: .venv/ready ## Send a million frames of nonsense to both ends of the wire; ARGS="--seed 7 --frames 50000"
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m fuzz $(ARGS)

.PHONY: test-survival
test-survival: .venv/ready ## Restart, upgrade and kill everything under running tasks, and let tasks do their worst; ARGS=--help
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m survival $(ARGS)

.PHONY: test-outage
test-outage: .venv/ready $(if $(findstring --edge3,$(ARGS)),.bench/env-peer/ready) ## Cut the link for half an hour under 8 tasks; ARGS="--edge3", "--minutes 1" (all clocks shortened), --help
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m outage $(ARGS)

.PHONY: test-systemd
test-systemd: .venv/ready ## Test units and agent on Debian machines with a real systemd; needs root, systemd-container, mmdebstrap
	@UV="$(abspath $(UV))" $(IN_VENV)/pytest tests/systemd $(ARGS)

.PHONY: test-qemu
test-qemu: .venv/ready ## Test limits, out of memory and reboot on an emulated machine; needs root, qemu-system-x86, mmdebstrap
	@UV="$(abspath $(UV))" $(IN_VENV)/pytest tests/qemu --timeout 1200 $(ARGS)

.PHONY: test-ui
test-ui: $(UI_ENV)/ready server/ui/node_modules/ready ## Test the pages in Airflow's UI, in a real browser; needs npm, chromium; AIRFLOW=3.2 for another; pictures go to .screenshots
	@$(UI_ENV)/bin/python -m pytest tests/ui $(ARGS)

.PHONY: ui
ui: server/ui/node_modules/ready ## Build the pages in Airflow's UI from server/ui into the server's package; needs npm
	@cd server/ui && npm run --silent types && npm run --silent format && npm run --silent build -- --logLevel warn

.PHONY: lint-ui
lint-ui: server/ui/node_modules/ready ## Check the pages' style and types, and that the bundle in the package is what they build
	@cd server/ui && npm run --silent check
	@cd server/ui && EDGE_UI_OUT=node_modules/.built npm run --silent build -- --logLevel warn
	@cmp server/ui/node_modules/.built/edge-agents.js server/src/airflow_edge_server/ui/static/edge-agents.js \
		|| { echo "The bundle in the package is not what server/ui builds: run 'make ui' and commit what it writes." >&2; exit 1; }

.PHONY: bench-systemd
bench-systemd: .venv/ready ## Measure start, idle CPU and memory of the daemon under systemd
	@UV="$(abspath $(UV))" PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m machine.bench $(ARGS)

.PHONY: docs-systemd
docs-systemd: .venv/ready ## Write what systemd thinks of our units into docs/systemd.md
	@UV="$(abspath $(UV))" PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m machine.document

.PHONY: lint
lint: .venv/ready ## Check style, types and layers
	@echo "ruff check"; $(IN_VENV)/ruff check
	@echo "ruff format --check"; $(IN_VENV)/ruff format --check
	@echo "mypy"; $(IN_VENV)/mypy
	@echo "import-linter"; $(IN_VENV)/lint-imports

.PHONY: format
format: .venv/ready ## Format the code and mend what can be mended
	@$(IN_VENV)/ruff check --fix; $(IN_VENV)/ruff format

.PHONY: bench
bench: .venv/ready .demo/env-agent/ready .demo/env-runtime/ready ## Measure cost and latency; ARGS=--help shows what can be chosen
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m bench $(ARGS)

.PHONY: bench-peer
bench-peer: .bench/env-peer/ready ## Measure, side by side with Airflow's edge3 provider
	@$(MAKE) bench ARGS="--arms agent,peer $(ARGS)"

.PHONY: bench-fleet
bench-fleet: .venv/ready ## Measure the server with N simulated agents: N=1000, ARGS=--help shows what can be chosen
	@PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(IN_VENV)/python -m fleet --agents $(N) $(ARGS)

.PHONY: bench-fleet-peer
bench-fleet-peer: .bench/env-peer/ready ## The same, beside Airflow's edge3 provider
	@$(MAKE) bench-fleet ARGS="--edge3 $(ARGS)"

.PHONY: audit
audit: .venv/ready ## Ask whether what is locked has known vulnerabilities, and write bills of materials into dist/audit
	@UV="$(if $(filter .tools/%,$(UV)),$(abspath $(UV)),$(UV))" PYTHONPATH=packaging/build \
		$(IN_VENV)/python -m edgepack audit $(ARGS)

.PHONY: packages
packages: .venv/ready ## Build .deb and .rpm into dist/packages; ARGS="--python 3.13 --arch arm64 --release 2"
	@UV="$(if $(filter .tools/%,$(UV)),$(abspath $(UV)),$(UV))" PYTHONPATH=packaging/build \
		$(IN_VENV)/python -m edgepack packages $(ARGS)

.PHONY: repo
repo: .venv/ready ## Make a signed apt and a signed yum repository of dist/packages; needs KEY=, apt-utils, createrepo-c
	@PYTHONPATH=packaging/build $(IN_VENV)/python -m edgepack repository --key "$(KEY)" $(ARGS)

.PHONY: bundle
bundle: .venv/ready ## Make one file of dist/packages for sites without a repository; needs KEY=, gpg
	@PYTHONPATH=packaging/build $(IN_VENV)/python -m edgepack bundle --key "$(KEY)" $(ARGS)

.PHONY: test-packages
test-packages: .venv/ready ## Install, upgrade and remove the packages on Debian machines; needs root, mmdebstrap, apt-utils, createrepo-c, gpg
	@UV="$(if $(filter .tools/%,$(UV)),$(abspath $(UV)),$(UV))" $(IN_VENV)/pytest tests/packages --timeout 900 $(ARGS)

.PHONY: test-monitoring
test-monitoring: .venv/ready .compat/prometheus/ready server/ui/node_modules/ready ## Try dashboard and alert rules in a real Prometheus; needs apt-get and npm
	@$(IN_VENV)/pytest tests/monitoring $(ARGS)

.PHONY: test-containers
test-containers: .compat/containers/ready ## Check compose.yaml and the Helm chart with Helm itself and Kubernetes' schemas
	@.compat/containers/bin/python -m pytest --confcutdir tests/containers tests/containers $(ARGS)

.PHONY: clean
clean: ## Remove everything that these targets have made
	@rm -rf .tools .venv .demo .bench .compat .machines .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf server/ui/node_modules .screenshots
	@rm -rf dist/packages dist/repository dist/documents dist/audit dist/*-bundle.tar
	@find agent server tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What the targets stand on.

.PHONY: python-found
python-found:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 to 3.14 found on PATH. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }

.tools/bin/uv: | python-found
	@echo "Installing uv into .tools"
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv; or put uv on PATH." >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv$(UV_RANGE)'

.venv/ready: $(LOCKED) | python-found $(filter .tools/%,$(UV))
	@echo "Installing the development environment into .venv (minutes the first time)"
	@$(UV_SYNC)
	@touch $@

server/ui/node_modules/ready: server/ui/package.json server/ui/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing. On Debian or Ubuntu: apt-get install npm" >&2; exit 1; }
	@echo "Installing what the pages are built with into server/ui/node_modules"
	@cd server/ui && npm ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

# Installed as an operator would: as built distributions, compiled as pip does, each side with what it needs and no more.
.demo/%: export UV_COMPILE_BYTECODE := 1
.demo/env-server/ready: $(LOCKED) $(SOURCES) | python-found $(filter .tools/%,$(UV))
	@echo "Installing Airflow and airflow-edge-server into .demo/env-server (minutes the first time)"
	@UV_PROJECT_ENVIRONMENT=.demo/env-server $(UV_SYNC) --no-dev --no-editable --package airflow-edge-server \
		--reinstall-package airflow-edge-server --reinstall-package airflow-edge-agent
	@touch $@

.demo/env-agent/ready: $(LOCKED) $(SOURCES) | python-found $(filter .tools/%,$(UV))
	@echo "Installing airflow-edge-agent into .demo/env-agent"
	@UV_PROJECT_ENVIRONMENT=.demo/env-agent $(UV_SYNC) --no-dev --no-editable --package airflow-edge-agent \
		--reinstall-package airflow-edge-agent
	@touch $@

.demo/env-runtime/ready: $(LOCKED) | python-found $(filter .tools/%,$(UV))
	@echo "Installing a task runtime (Airflow's Task SDK) into .demo/env-runtime"
	@UV_PROJECT_ENVIRONMENT=.demo/env-runtime $(UV_SYNC) --only-group runtime
	@touch $@

.compat/airflow-%/ready: agent/pyproject.toml server/pyproject.toml Makefile | python-found $(filter .tools/%,$(UV))
	@echo "Installing Airflow $* with the tests into .compat/airflow-$*"
	@mkdir -p .compat
	@$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .compat/airflow-$*
	@$(UV) pip install --quiet --python .compat/airflow-$*/bin/python "apache-airflow==$*.*" $(CONSTRAINTS_$*) \
		apache-airflow-providers-standard hypothesis playwright 'psycopg[binary]' psycopg2-binary pymysql pytest pytest-asyncio \
		pytest-timeout statsd trustme \
		--editable agent --editable server
	@touch $@

.compat/fab/ready: agent/pyproject.toml server/pyproject.toml Makefile | python-found $(filter .tools/%,$(UV))
	@echo "Installing Airflow with Flask AppBuilder's auth manager and the tests into .compat/fab"
	@mkdir -p .compat
	@$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .compat/fab
	@$(UV) pip install --quiet --python .compat/fab/bin/python "apache-airflow==3.3.*" "apache-airflow-providers-fab>=3,<4" \
		apache-airflow-providers-standard hypothesis 'psycopg[binary]' psycopg2-binary pymysql pytest pytest-asyncio pytest-timeout statsd \
		trustme \
		--editable agent --editable server
	@touch $@

# From Debian 13, which has a receiver of OpenTelemetry too. Its signature is checked as for any other of its packages.
.compat/prometheus/ready: Makefile
	@command -v apt-get dpkg-deb >/dev/null || { echo "Prometheus and VictoriaMetrics are taken from Debian's packages, which needs apt-get" >&2; exit 1; }
	@echo "Fetching Prometheus and VictoriaMetrics into .compat/prometheus"
	@rm -rf .compat/prometheus && mkdir -p .compat/prometheus/apt/lists/partial .compat/prometheus/apt/cache/archives/partial
	@echo "deb http://deb.debian.org/debian trixie main" >.compat/prometheus/apt/sources.list
	@cd .compat/prometheus && for step in update "download prometheus promtool victoria-metrics"; do apt-get -qq -o APT::Sandbox::User=root \
		-o Dir::Etc::SourceList="$$PWD/apt/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$$PWD/apt/lists" \
		-o Dir::Cache="$$PWD/apt/cache" $$step || exit 1; done && for package in *.deb; do dpkg-deb -x "$$package" . || exit 1; done
	@rm -rf .compat/prometheus/apt .compat/prometheus/*.deb
	@touch $@

.compat/containers/ready: $(LOCKED) | python-found $(filter .tools/%,$(UV))
	@echo "Installing what checks containers into .compat/containers"
	@UV_PROJECT_ENVIRONMENT=.compat/containers $(UV_SYNC) --only-group containers
	@touch $@

.compat/runtime-%/ready: Makefile | python-found $(filter .tools/%,$(UV))
	@echo "Installing a task runtime with Task SDK $* into .compat/runtime-$*"
	@mkdir -p .compat
	@$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .compat/runtime-$*
	@$(UV) pip install --quiet --python .compat/runtime-$*/bin/python "apache-airflow-task-sdk==$*.*" \
		apache-airflow-providers-standard
	@touch $@

# The same Airflow in the same versions, with edge3 instead of ours.
.bench/env-peer/ready: $(LOCKED) | python-found $(filter .tools/%,$(UV))
	@echo "Installing Airflow and edge3 $(PEER_VERSION) into .bench/env-peer"
	@mkdir -p .bench
	@$(UV) export --frozen --quiet --no-hashes --no-emit-workspace --output-file .bench/constraints.txt
	@$(UV) venv --quiet --allow-existing --python "$(PYTHON)" .bench/env-peer
	@$(UV) pip install --quiet --python .bench/env-peer/bin/python --constraint .bench/constraints.txt \
		apache-airflow psycopg2-binary "apache-airflow-providers-edge3==$(PEER_VERSION)"
	@touch $@
