# Everything a newcomer needs: `make demo` and `make test`. Both install what they need into .venv.

PYTHON ?= python3 python3.13 python3.12 python3.11 python3.10
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
FAULTS_ARGS ?=
NETWORK_ARGS ?=
BROWSER_ARGS ?=
CONTAINERS_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo test test-slow test-all test-browser test-faults test-network test-containers test-kubernetes kubernetes-rules bench bench-recovery bench-latency bench-seeding bench-scaling bench-takeover bench-faults lint lock install clean

# The program shopflow, not faust: Ctrl-C is one sentence from the first tenth of a second on.
demo: $(VENV)/installed
	$(BIN)/shopflow demo $(DEMO_ARGS)

# TEST_ARGS="tests/shop -x" runs some of them; with "-m slow" in it also slow ones.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 4 --dist loadfile -m "not slow" $(TEST_ARGS)

# What takes long: kills, replays, logins, the commands in the documents.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 4 --dist loadfile -m slow $(TEST_ARGS)

# All of it, as CI does.
test-all: lint test test-slow test-browser test-faults test-network

# The page in a real browser, Debian's chromium. SHOPFLOW_TEST_PICTURES=FOLDER keeps pictures of it.
test-browser: $(VENV)/installed-browser
	$(BIN)/python -m pytest tests/browser -n 2 --dist worksteal $(BROWSER_ARGS)

# Workers and servers are killed in the middle of 100,000 purchases; then, shorter, the same with an older Kafka.
# SHOPFLOW_TEST_SEED=N repeats a run, FAULTS_ARGS="-k NAME" a test.
test-faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults -n 2 --dist worksteal $(FAULTS_ARGS)
	SHOPFLOW_TEST_KAFKA_VERSION=3.9.1 SHOPFLOW_TEST_FAULTS_PURCHASES=30000 \
		$(BIN)/python -m pytest tests/faults -k 'mixed or frozen_past' $(FAULTS_ARGS)

# The network between Kafka, MongoDB and two workers breaks, and brokers of a Kafka of three go. SHOPFLOW_TEST_SEED=N too.
# The first needs iproute2, nftables, and root or `unshare --user --map-root-user make test-network`.
test-network: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/network -n 2 --dist worksteal $(NETWORK_ARGS)

# The image is built and docker-compose.yml is run: 3 minutes, and 9 the first time. Without a Docker engine it starts
# its own (root, and Debian's docker.io, docker-compose, slirp4netns, iptables, debootstrap), and makes images that can't be pulled.
test-containers: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/containers -s $(CONTAINERS_ARGS)

# The manifests are rendered by kustomize, which Go builds the first time in two minutes, and checked.
test-kubernetes: $(VENV)/installed-dev
	command -v kustomize > /dev/null || GOBIN=$(CURDIR)/$(BIN) go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/docs/test_kubernetes.py

# The alerts as the Prometheus operator reads them.
kubernetes-rules:
	printf '%s\n' '# Made of deploy/prometheus/alerts.yml by make kubernetes-rules.' 'apiVersion: monitoring.coreos.com/v1' \
		'kind: PrometheusRule' 'metadata:' '  name: shopflow' 'spec:' > deploy/kubernetes/components/monitoring/rules.yaml
	sed 's/^./  &/' deploy/prometheus/alerts.yml >> deploy/kubernetes/components/monitoring/rules.yaml

# From Kafka to MongoDB, beside others that do it; docs/PERFORMANCE.md. BENCH_ARGS="--rounds 1 --loads 1000 --only loop".
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.throughput $(BENCH_ARGS)

# How fast a worker gets its tables back, beside plain Faust.
bench-recovery: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.recovery $(BENCH_ARGS)

# How long a purchase takes at 1,000 a second, beside the hand-written loop.
bench-latency: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.latency $(BENCH_ARGS)

# How fast example events get into Kafka, beside a bare producer.
bench-seeding: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.seeding $(BENCH_ARGS)

# One, two and three workers; one worker with 4, 16 and 64 partitions.
bench-scaling: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.scaling $(BENCH_ARGS)

# How long partitions stand still when workers are killed, restarted or join. BENCH_ARGS="--rounds 1 --workers 2".
bench-takeover: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.takeover $(BENCH_ARGS)

# The same faults for shopflow and for a textbook Faust application: what each lost. BENCH_ARGS="--seed 1".
bench-faults: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.faults $(BENCH_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The exact versions that the Dockerfile installs, with their checksums, as new as setup.cfg lets them be.
lock: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	(echo "# Written by make lock: what the Dockerfile installs."; printf 'dumb-init\nsetuptools>=77\n' | $(BIN)/uv pip compile --quiet setup.cfg - --extra page \
		--python-version 3.13 --python-platform linux --generate-hashes --no-header --no-annotate --no-emit-index-url) > requirements.new
	mv requirements.new requirements.lock

install: $(VENV)/installed

# The first Python that the embedded servers have wheels for, 3.10 to 3.13, else one that uv fetches; or the named one.
$(VENV)/bin/python:
	@for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2> /dev/null; then \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	if [ "$(origin PYTHON)" = file ] && command -v uv > /dev/null; then exec uv venv --quiet --seed --python 3.13 $(VENV); fi; \
	echo "The embedded servers need Python 3.10 to 3.13: install one of them, or uv; or name one: make PYTHON=/path/to/python3.13" >&2; \
	exit 1

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,page]'
	@touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,page,parquet,test,dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-browser: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,page,test,browser,dev]'
	@touch $@ $(VENV)/installed $(VENV)/installed-dev

$(VENV)/installed-bench: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,bench]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist *.egg-info
