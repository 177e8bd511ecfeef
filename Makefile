# Entry points for people and for CI. The demo and the tests use the dev profile: checks on, hot code optimised.

SHELL := /bin/bash
# ip and nft are in these folders, which are not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help prepare build demo test bench bench-peers bench-instructions soak lint advisories fresh clean-lab image image-test vm-image vm-test version-test deb deb-test dist check-release

TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),target)
LAB ?= hub-spoke
KEEP ?=
RUNTIME ?= netns
# The lab makes network namespaces, so demo and tests run as root; only the build runs as the caller.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E")
# .ci/only prefixes the demo and each test with it.
export TOMBOLO_AS_ROOT := $(AS_ROOT)

help:
	@echo "make demo              build, and demonstrate a hub, two spokes and a branch on this machine"
	@echo "make demo KEEP=1       the same, and leave the lab up; LAB=FILE: another file with the same hosts"
	@echo "make demo RUNTIME=docker  the same in containers of the image; needs a running docker engine"
	@echo "make demo RUNTIME=vm   the same in virtual machines with Debian's kernel; emulated where KVM does not work"
	@echo "make demo LAB=policy    network security groups: three tiers, a rule that breaks them, explain, the repair, two appliances"
	@echo "make demo LAB=global   a load balancer in another region: latencies, back ends that fail and return, kill -9 of an agent"
	@echo "make demo LAB=interop  circuits, sites and VPNs: every path of the published interoperability lab"
	@echo "make test              everything: unit, property, simulation, fuzz corpus, end to end in namespaces"
	@echo "make bench             all measurements: change latency, zero-loss pings, failover, attacks, 200 x kill -9, and bench-peers"
	@echo "make bench-peers       the data plane beside other user-space VPNs; the first run builds them (ROUNDS=5)"
	@echo "make bench-instructions  instructions of the engine per packet, compared with an earlier commit (BASE=HEAD~1)"
	@echo "make soak              half an hour at full load with restarts of the other end: no leak, no panic (MINUTES=30)"
	@echo "make lint              formatting, unused dependencies, licences and bans, clippy, documentation"
	@echo "make advisories        known vulnerabilities of dependencies; needs access to the database"
	@echo "make fresh             make demo and make test in a minimal root, as on a bare machine (TARGETS=demo)"
	@echo "make image             the container image: imported into a running docker engine, and as an archive (BASE=image to build on)"
	@echo "make image-test        deploy/compose.yaml with that image: packets, confinement, restarts; needs docker and compose"
	@echo "make version-test      the last release's agents with this controller, and the other way round"
	@echo "make vm-test           the packages in a Debian system, booted in an emulated virtual machine: BGP, kill -9, upgrade, cloud-init"
	@echo "make deb               Debian packages of this commit, in target/dist"
	@echo "make dist              the same, an archive, a software bill of materials and checksums"
	@echo "make deb-test          install, upgrade and purge the packages in a minimal root"
	@echo "make check-release     all checks of a release: fresh, lint, packages, virtual machines, containers; needs docker and compose"
	@echo "make clean-lab         remove the leftovers of a crashed lab"

prepare:
	@.ci/prepare

build: prepare
	@echo "==> building (the first time takes some minutes)"
	@cargo build --locked --workspace --bins

# Containers and virtual machines bring the programs of their image; docker and QEMU are not in the demo's list of programs.
demo: build $(if $(filter docker,$(RUNTIME)),image) $(if $(filter vm,$(RUNTIME)),vm-image)
	@$(if $(filter docker vm,$(RUNTIME)),$(AS_ROOT),.ci/only demo) $(TARGET_DIR)/debug/tombolo lab demo $(LAB) --runtime $(RUNTIME) $(if $(filter-out 0,$(KEEP)),--keep)

# cargo test builds the programs that the tests start: a separate build would compile them twice.
test: prepare
	@echo "==> running all tests"
	@cargo test --locked --workspace --no-fail-fast

bench:
	@.ci/prepare bench
	@cargo build --locked --release --workspace --bins --example hostile-agent --example reach-scale
	@failed=0; \
	$(AS_ROOT) tests/bench/run --binaries $(TARGET_DIR)/release all || failed=1; \
	cargo build --locked --workspace --bins; \
	TOMBOLO_KILLS=200 cargo test --locked --workspace --test kill -- --nocapture || failed=1; \
	$(MAKE) --no-print-directory bench-peers || failed=1; \
	exit $$failed

bench-peers:
	@.ci/prepare bench
	@cargo build --locked --release --workspace --bins
	@$(AS_ROOT) tests/bench/peers/all.sh $(TARGET_DIR)/release $(TARGET_DIR)/bench $(or $(ROUNDS),5)

bench-instructions:
	@.ci/prepare bench
	@tests/bench/instructions.py $(or $(BASE),HEAD~1)

soak:
	@.ci/prepare bench
	@cargo build --locked --release --workspace --bins
	@$(AS_ROOT) env BENCH_BIN=$(abspath $(TARGET_DIR)/release) tests/bench/peers/soak.py --minutes $(or $(MINUTES),30)

# The quick checks run first.
lint:
	@.ci/prepare lint
	@echo "==> formatting"
	@cargo fmt --all --check
	@echo "==> unused dependencies"
	@$(TARGET_DIR)/tools/bin/cargo-shear --locked --deny-warnings
	@echo "==> licences, bans and sources of dependencies"
	@$(TARGET_DIR)/tools/bin/cargo-deny --locked --all-features check licenses bans sources
	@echo "==> clippy"
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@echo "==> documentation"
	@RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items

advisories:
	@.ci/prepare lint
	@$(TARGET_DIR)/tools/bin/cargo-deny --locked fetch db || \
		{ echo "NOT CHECKED: the database of known vulnerabilities cannot be reached" >&2; exit 1; }
	@$(TARGET_DIR)/tools/bin/cargo-deny --locked --offline --all-features check advisories

fresh:
	@.ci/prepare fresh
	@$(AS_ROOT) env "PATH=$$PATH" KEEP=$(KEEP) .ci/fresh $(TARGETS)

vm-image:
	@.ci/prepare vm-image
	@cargo build --locked --workspace --bins
	@$(AS_ROOT) deploy/vm/image.py --programs $(TARGET_DIR)/debug --work $(TARGET_DIR)/lab-vm

# Packages of the dev profile, which the other tests build anyway: a release build takes far longer. The second set has the same
# programs and a higher version. gzip, because the emulated processor needs minutes for xz.
vm-test:
	@.ci/prepare vm
	@cargo build --locked --workspace --bins
	@rm -rf $(TARGET_DIR)/vm-packages
	@for revision in 1 2; do \
		PROFILE=dev deploy/packages/deb $(abspath $(TARGET_DIR)) $(abspath $(TARGET_DIR))/vm-packages/$$revision $$revision \
			--compress-type gz --compress-system; \
	done
	@$(AS_ROOT) env CARGO_TARGET_DIR=$(abspath $(TARGET_DIR)) tests/vm/run

# The programs of the last release beside those of this tree, in both orders.
version-test: build
	@$(AS_ROOT) env "PATH=$$PATH" tests/versions/run $(TARGET_DIR)

# target/dist contains one build only. PROFILE=dev makes packages for trials, without the long release build.
deb dist deb-test: export PROFILE ?= release
deb:
	@.ci/prepare package
	@cargo build --locked --profile $(PROFILE) --workspace --bins
	@rm -rf $(TARGET_DIR)/dist
	@deploy/packages/deb $(abspath $(TARGET_DIR)) $(abspath $(TARGET_DIR))/dist

dist: deb
	@deploy/packages/archive $(abspath $(TARGET_DIR))

deb-test:
	@.ci/prepare package-test
	@cargo build --locked --profile $(PROFILE) --workspace --bins
	@$(AS_ROOT) env "PATH=$$PATH" deploy/packages/test $(abspath $(TARGET_DIR))

check-release:
	@.ci/check-release

clean-lab:
	@$(AS_ROOT) $(TARGET_DIR)/debug/tombolo lab down --all

image:
	@.ci/prepare image
	@cargo build --locked --release --workspace --bins
	@deploy/docker/image.py --programs $(TARGET_DIR)/release --work $(TARGET_DIR)/image \
		$(if $(BASE),--base $(BASE)) $(if $(ENGINE),--engine $(ENGINE))

image-test: image
	@tests/image/compose.py --archive $(TARGET_DIR)/image/tombolo.tar
