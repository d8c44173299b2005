# Tasks of this project. `make help` lists them.

CARGO ?= cargo
# Where cargo builds.
CARGO_TARGET_DIR ?= target
# For `make fuzz`: how long each target runs.
SECONDS ?= 600
# For `make soak`: the number of connections.
CONNECTIONS ?= 10000000
# For `make chaos`: the duration, the kind of cluster (available or consistent), and the seed of the faults (random if empty).
MINUTES ?= 30
MODE ?= available
SEED ?=
# Passed on by `make run` and `make bench`.
ARGS ?=

# For `make test-package`: the Debian that it boots.
SUITE ?= bookworm

# For `make install`, which keeps existing files below SYSCONFDIR.
PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc

.PHONY: help build run test test-package bench bench-handover bench-peers bench-cluster bench-calc bench-users fuzz soak chaos availability manual proto deb apt-repository install

help: ## prints this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

build: ## builds the daemon, its client and its monitoring plugin, optimised
	$(CARGO) build --release --locked

run: ## runs the daemon, on port 4242 of the loopback interface; ARGS='--log debug'
	$(CARGO) run --release --locked -- $(ARGS)

test: ## runs all tests; as root it installs with apt what they need
	./tests/run

test-package: ## tests the Debian package in a Debian that it boots; needs root; SUITE=trixie SHORT=1
	SUITE=$(SUITE) ./tests/package

bench: build ## compares with a minimal server and Redis; ARGS='--only pipelined'
	$(CARGO) bench --locked --bench serving -- $(ARGS)

bench-handover: build ## measures how long clients wait during a handover; ARGS='--clients 1000 --rounds 200'
	$(CARGO) bench --locked --bench handover -- $(ARGS)

bench-peers: build ## compares gRPC with grpc-go and JSON-RPC with nginx; ARGS='--rounds 9'
	$(CARGO) bench --locked --bench peers -- $(ARGS)

bench-cluster: build ## measures the cost of a cluster over Redis, with 3 to 1,000 servers; ARGS='--servers 3,30'
	$(CARGO) bench --locked --bench cluster -- $(ARGS)

bench-calc: build ## measures how clients that compute delay clients that only ask; ARGS='--clients 64'
	$(CARGO) bench --locked --bench calc -- $(ARGS)

bench-users: build ## measures pulls into PostgreSQL and SQLite and get_users, beside psql; ARGS='--rounds 9'
	$(CARGO) bench --locked --bench users -- $(ARGS)

fuzz: ## fuzzes the codecs, PROXY headers, the handover state, HTTP and Redis's replies; SECONDS=600
	./fuzz/run $(SECONDS)

soak: ## opens connections of all kinds, and checks that nothing is left behind; CONNECTIONS=10000000
	BLOCKCHAIN_TCPD_TEST_CONNECTIONS=$(CONNECTIONS) $(CARGO) test --release --locked --test tests soak:: -- --nocapture --test-threads=1

chaos: ## injects faults into a cluster, as root; MINUTES=30 MODE=consistent SEED=1
	BLOCKCHAIN_TCPD_CHAOS_SECONDS=$$(($(MINUTES) * 60)) $(if $(SEED),BLOCKCHAIN_TCPD_CHAOS_SEED=$(SEED)) \
	  $(CARGO) test --release --locked --test cluster chaos::$(MODE) -- --nocapture --test-threads=1

availability: ## measures the availability of three servers behind HAProxy that are restarted and killed, as root; MINUTES=30
	BLOCKCHAIN_TCPD_AVAILABILITY_SECONDS=$$(($(MINUTES) * 60)) \
	  $(CARGO) test --release --locked --test cluster balanced:: -- --nocapture --test-threads=1

manual: ## writes the command table into the manual page
	BLOCKCHAIN_TCPD_WRITE_MANUAL=1 $(CARGO) test --locked --test tests manual::the_commands_in_it_are_those_of_the_table

proto: ## writes the protobuf schema of the commands into proto/
	BLOCKCHAIN_TCPD_WRITE_PROTO=1 $(CARGO) test --locked -p blockchain-tcpd-shared --lib the_file_is_generated

deb: ## builds the Debian package, in target/debian
	./packaging/build-deb

apt-repository: ## makes a signed apt repository of the packages in target/debian, in target/apt
	./packaging/apt-repository

install: build ## installs without the package: PREFIX=/usr/local DESTDIR= SYSCONFDIR=/etc
	install -D -m 755 $(CARGO_TARGET_DIR)/release/blockchain-tcpd $(DESTDIR)$(PREFIX)/sbin/blockchain-tcpd
	install -D -m 755 $(CARGO_TARGET_DIR)/release/blockchain-tcp $(DESTDIR)$(PREFIX)/bin/blockchain-tcp
	$(CARGO_TARGET_DIR)/release/blockchain-tcp completions bash >$(CARGO_TARGET_DIR)/blockchain-tcp.bash
	$(CARGO_TARGET_DIR)/release/blockchain-tcp completions zsh >$(CARGO_TARGET_DIR)/blockchain-tcp.zsh
	$(CARGO_TARGET_DIR)/release/blockchain-tcp completions fish >$(CARGO_TARGET_DIR)/blockchain-tcp.fish
	install -D -m 644 $(CARGO_TARGET_DIR)/blockchain-tcp.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/blockchain-tcp
	install -D -m 644 $(CARGO_TARGET_DIR)/blockchain-tcp.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_blockchain-tcp
	install -D -m 644 $(CARGO_TARGET_DIR)/blockchain-tcp.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/blockchain-tcp.fish
	install -D -m 755 $(CARGO_TARGET_DIR)/release/check_blockchain_tcp $(DESTDIR)$(PREFIX)/lib/nagios/plugins/check_blockchain_tcp
	install -D -m 644 man/blockchain-tcp.1 $(DESTDIR)$(PREFIX)/share/man/man1/blockchain-tcp.1
	install -D -m 644 man/blockchain-tcpd.8 $(DESTDIR)$(PREFIX)/share/man/man8/blockchain-tcpd.8
	install -D -m 644 man/check_blockchain_tcp.8 $(DESTDIR)$(PREFIX)/share/man/man8/check_blockchain_tcp.8
	install -D -m 644 systemd/tight.conf $(DESTDIR)$(PREFIX)/share/doc/blockchain-tcpd/examples/tight.conf
	install -D -m 644 packaging/nagios/nagios-example.cfg $(DESTDIR)$(PREFIX)/share/doc/blockchain-tcpd/examples/nagios-example.cfg
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/blockchain-tcpd docs/protocol.md docs/metrics.md docs/slo.md docs/alerts.md docs/cluster.md
	for file in $$(cd packaging && find prometheus grafana haproxy -type f) $$(cd examples && find clients -type f) $$(find proto -type f); do \
	  from=packaging/$$file; test -e $$from || from=examples/$$file; test -e $$from || from=$$file; \
	  install -D -m $$(test -x $$from && echo 755 || echo 644) $$from $(DESTDIR)$(PREFIX)/share/doc/blockchain-tcpd/examples/$$file || exit; \
	done
	install -D -m 644 systemd/blockchain-tcpd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/blockchain-tcpd.socket
	for unit in admin protobuf http grpc; do install -D -m 644 systemd/blockchain-tcpd-$$unit.socket -t $(DESTDIR)$(PREFIX)/lib/systemd/system || exit; done
	sed 's,/usr/sbin/,$(PREFIX)/sbin/,; s,=-/etc/,=-$(SYSCONFDIR)/,' systemd/blockchain-tcpd.service >$(CARGO_TARGET_DIR)/blockchain-tcpd.service
	install -D -m 644 $(CARGO_TARGET_DIR)/blockchain-tcpd.service $(DESTDIR)$(PREFIX)/lib/systemd/system/blockchain-tcpd.service
	test -e $(DESTDIR)$(SYSCONFDIR)/default/blockchain-tcpd || \
	  install -D -m 644 packaging/debian/blockchain-tcpd.default $(DESTDIR)$(SYSCONFDIR)/default/blockchain-tcpd
	sed 's,/usr/lib/,$(PREFIX)/lib/,' packaging/nagios/blockchain-tcp.cfg >$(CARGO_TARGET_DIR)/blockchain-tcp.cfg
	test -e $(DESTDIR)$(SYSCONFDIR)/nagios-plugins/config/blockchain-tcp.cfg || \
	  install -D -m 644 $(CARGO_TARGET_DIR)/blockchain-tcp.cfg $(DESTDIR)$(SYSCONFDIR)/nagios-plugins/config/blockchain-tcp.cfg
