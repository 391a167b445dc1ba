# The one door: everything that can be done here is a target. On a fresh Debian 12 each installs what it needs.
.POSIX:
.PHONY: help advisories boot build cross deb demo model test test-arm test-deb lint bench hold reproducible sbom size clean fuzz

# One set of features for build, tests and lint, so that nothing is compiled twice.
FEATURES = --features tpm,pkcs11
# Of the emulated board (arm64, or armhf), of the packages that are tried (all, or one of them).
ARCH =
# Of the model check: steps of the token beyond those of the tests.
DEPTH = 0
# cargo install puts its programs there.
export PATH := $(HOME)/.cargo/bin:$(PATH)

help:
	@echo 'make demo      see a device join, renew, lose its certificate, recover, and a thief being caught'
	@echo 'make test      every test'
	@echo 'make model     the model check where copies join in every way everywhere; DEPTH=1: by one more step (hours)'
	@echo 'make test-arm  the tests with ARM agents, emulated'
	@echo 'make lint      formatting, clippy, documentation, dependencies, scripts'
	@echo 'make size      the agent as it ships, against its budget'
	@echo 'make cross     the agent for ARM and RISC-V, in target/cross/'
	@echo 'make deb       packages for Debian (amd64, arm64, armhf), in target/debian/'
	@echo 'make test-deb  the life of each package in a Debian of its own, ARM emulated; ARCH=armhf: of that one'
	@echo 'make sbom      a bill of materials of each program (CycloneDX), in target/sbom/'
	@echo 'make reproducible  builds twice in different directories, and compares the bytes; WHAT=deb: the packages'
	@echo 'make advisories    known faults of the crates, by the database of today where it can be had'
	@echo 'make fuzz      one fuzz target under libFuzzer: make fuzz TARGET=join SECONDS=600'
	@echo 'make boot      an emulated ARM board with a TPM, whose power is cut in joins; ARCH=armhf: the 32-bit one'
	@echo 'make bench     the agent and the server against their peers, on this machine'
	@echo 'make hold      10,000 slow connections stand while 1,000 devices renew and an operator works'

build:
	@tests/setup build test
	@cargo build $(FEATURES)

demo:
	@tests/setup build
	@cargo build
	@tests/demo target/debug

test:
	@tests/setup build test
	@tests/timed build cargo test --workspace $(FEATURES) --no-run
	@tests/timed test cargo test --workspace $(FEATURES) --no-fail-fast

model:
	@tests/setup build test
	BOUNDKEY_MODEL_DEPTH=$(DEPTH) tests/timed model cargo test -p boundkey-model $(FEATURES) --test model -- --nocapture

test-arm:
	@tests/setup build test cross board
	tests/arm
	@cargo build $(FEATURES)
	@tests/timed board cross/board/boot arm64 --short

lint:
	@tests/setup build test lint
	cargo fmt --all --check
	@tests/timed clippy cargo clippy --quiet --workspace --all-targets $(FEATURES) -- -D warnings
	@tests/timed agent-alone cargo clippy --quiet --no-default-features --features agent --bin boundkey -- -D warnings
	@tests/timed hal-no-std cargo clippy --quiet -p boundkey-hal --no-default-features -- -D warnings
	@tests/timed doc env RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps $(FEATURES)
	@tests/timed deny cargo deny --log-level error check bans licenses sources
	tests/lint

size:
	@tests/setup build cross
	@tests/timed size tests/bench/size --all

cross:
	@tests/timed cross cross/build

deb:
	@tests/setup build deb
	@tests/timed deb cross/debian/build

# Debian's compiler, whose version is in the bill, comes with what builds for other targets.
sbom:
	@tests/setup build cross
	@tests/timed sbom cross/sbom --all target/sbom

WHAT = agent
reproducible:
	@tests/setup build test $(if $(filter deb,$(WHAT)),deb) $(if $(findstring linux,$(WHAT)),cross)
	@tests/timed reproducible cross/reproduce $(WHAT)

advisories:
	@tests/setup build lint
	@tests/timed advisories tests/advisories/check

# The auth endpoint, which every agent needs, is a package of amd64.
test-deb:
	@tests/setup build deb
	@tests/timed deb cross/debian/build $(sort amd64 $(or $(ARCH),arm64 armhf))
	@set -e; for arch in $(or $(ARCH),amd64 arm64 armhf); do tests/timed "test-deb-$$arch" cross/debian/try "$$arch"; done

boot:
	@tests/setup build board
	@tests/timed build cargo build $(FEATURES)
	@tests/timed boot cross/board/boot $(or $(ARCH),arm64)

bench:
	@tests/setup build test bench
	tests/bench/run
	tests/bench/keystores

hold:
	@tests/setup build test
	tests/bench/hold

# Needs rustup and its nightly toolchain. What `make test` runs of the targets, tests/fuzz/bounded.rs, needs neither.
TARGET = join
SECONDS = 300
fuzz:
	@tests/setup build test fuzz
	mkdir -p tests/fuzz/artifacts/found/$(TARGET)
	cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer,tpm,pkcs11 $(TARGET) \
		tests/fuzz/artifacts/found/$(TARGET) tests/fuzz/corpus/$(TARGET) -- \
		-max_total_time=$(SECONDS) -max_len=16384 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=64

clean:
	cargo clean
