# What one does with this project. `make help` lists it.

CARGO ?= cargo
# Of `make fuzz`: how long each target runs.
SECONDS ?= 600
# Of `make soak`.
CONNECTIONS ?= 10000000
# Passed on by `make run` and `make bench`.
ARGS ?=

.PHONY: help build run test bench fuzz soak

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the daemon, optimised
	$(CARGO) build --release --locked

run: ## the daemon, on port 4242 of the loopback interface; ARGS='--log debug'
	$(CARGO) run --release --locked -- $(ARGS)

test: ## all tests; as root it installs with apt what they need
	./tests/run

bench: ## side by side with a minimal server and Redis; ARGS='--only pipelined'
	$(CARGO) bench --locked --bench serving -- $(ARGS)

fuzz: ## the line protocol; SECONDS=600
	./fuzz/run $(SECONDS)

soak: ## connections of all sorts, and nothing left behind; CONNECTIONS=10000000
	BLOCKCHAIN_TCPD_TEST_CONNECTIONS=$(CONNECTIONS) $(CARGO) test --release --locked --test tests soak:: -- --nocapture --test-threads=1
