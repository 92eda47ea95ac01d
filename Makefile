# make help says what there is. Each target prints the commands it runs.

# Recipes are bash, so that a failure anywhere in a pipe is a failure.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# sudo forgets where Go lies; so do users where sbin lies.
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

# Static binaries, without paths of the machine that built them, with what git
# says of the tree in them; under sudo git must be told to trust it.
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=auto
export GIT_CONFIG_COUNT := 1
export GIT_CONFIG_KEY_0 := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)

PREFIX   ?= /usr/local
ROOT      = $(DESTDIR)$(PREFIX)
FUZZTIME ?= 10s

.PHONY: all
all: ## both binaries, in bin/
	$(GOBUILD) -o bin/ ./cmd/tunneld ./cmd/tunnelctl

.PHONY: demo
demo: root all ## the main job, shown in a few namespaces of this machine (root; DEMO_JSON=FILE)
	.ci/deps demo
	$(GOBUILD) -o bin/demo ./internal/netlab/demo
	TUNNELD_BIN=$(CURDIR)/bin/tunneld TUNNELCTL_BIN=$(CURDIR)/bin/tunnelctl bin/demo

.PHONY: test
test: ## all tests; installs what they need when run as root
	.ci/deps test
	.ci/test

.PHONY: check
check: ## format, vet, staticcheck, go.mod, the rules of the tree and its documents
	files=$$(gofmt -l .); [[ -z $$files ]] || { echo "gofmt: not formatted:" $$files; exit 1; }
	go vet ./...
	go build -C tools -o $(CURDIR)/bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck ./...
	go mod tidy -diff
	cd tools && go vet ./... && go mod tidy -diff && go test ./...
	go test -count=1 ./internal/house

.PHONY: sim
sim: ## the control plane in 20,000 simulated schedules, and the mistakes it must catch
	go test -count=1 -timeout 15m -v ./internal/tunnel/sim

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (default 10s)
	.ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: root all ## ours beside bare wireguard-go and bare TLS handshakes (root; BENCH_JSON=FILE)
	.ci/deps bench
	$(GOBUILD) -o bin/bench ./internal/netlab/bench
	TUNNELD_BIN=$(CURDIR)/bin/tunneld TUNNELCTL_BIN=$(CURDIR)/bin/tunnelctl bin/bench

.PHONY: nightly
nightly: ## the long forms of the tests, longer fuzzing, the benchmark
	.ci/deps test
	TUNNELD_LONG=1 TEST_TIMEOUT=60m .ci/test
	for engines in native/reference reference/native reference/reference; do TUNNELD_ENGINES=$$engines TUNNELD_LONG=1 TEST_TIMEOUT=60m PKGS=./internal/netlab/e2e .ci/test; done
	.ci/fuzz 5m
	$(MAKE) bench

.PHONY: install
install: all ## binaries, unit, users, man pages, completion, under DESTDIR and PREFIX (default /usr/local)
	install -D -m 0755 bin/tunneld $(ROOT)/sbin/tunneld
	install -D -m 0755 bin/tunnelctl $(ROOT)/bin/tunnelctl
	sed 's|/usr/\(local/\)\?s\?bin/tunneld|$(PREFIX)/sbin/tunneld|' packaging/tunneld.service | install -D -m 0644 /dev/stdin $(ROOT)/lib/systemd/system/tunneld.service
	install -D -m 0644 packaging/tunneld.sysusers $(ROOT)/lib/sysusers.d/tunneld.conf
	for page in packaging/man/*.[1-8]; do install -D -m 0644 -t $(ROOT)/share/man/man$${page##*.} $$page; done
	bin/tunnelctl completion bash | install -D -m 0644 /dev/stdin $(ROOT)/share/bash-completion/completions/tunnelctl
	bin/tunnelctl completion zsh | install -D -m 0644 /dev/stdin $(ROOT)/share/zsh/site-functions/_tunnelctl
	bin/tunnelctl completion fish | install -D -m 0644 /dev/stdin $(ROOT)/share/fish/vendor_completions.d/tunnelctl.fish

.PHONY: clean
clean: ## what make made
	rm -rf bin dist

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Namespaces and TUN devices take root.
.PHONY: root
root:
	@[[ $$(id -u) == 0 ]] || { echo "make: this makes network namespaces and TUN devices and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
