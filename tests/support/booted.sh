# A Debian made from nothing and booted with its own systemd, in a container of systemd-nspawn; for tests/package.

# Its code name.
suite=${SUITE:-bookworm}
work=$PWD/target/test-package/$suite
# Made once, changed by nobody: what is booted is a copy.
pristine=$work/pristine
root=$work/root
version=
versions=()
packages=()
package=
leader=
nspawn=
cgroup=
booted=
# How a machine is connected, and what it is called.
networking=(--private-network)
machine=blockchain-tcpd-test-$$

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "FAILED: $*" >&2
    [ -z "$leader" ] || inside 'journalctl -u blockchain-tcpd -u blockchain-tcpd.socket -u blockchain-tcpd-admin.socket -o short-monotonic -n 30 --no-pager' >&2 || true
    exit 1
}

expect() {
    [ "$1" = "$2" ] || fail "expected '$1', not '$2'"
}

# Waits up to 30 s until a command succeeds.
wait_for() {
    local what=$1 deadline=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "in vain: $what"
        sleep 0.05
    done
}

left_out() {
    echo "left out: the package in a booted Debian: $*"
    [ "${BLOCKCHAIN_TCPD_TEST_ALL:-}" != 1 ] || exit 1
    exit 0
}

# Runs a shell's commands in the booted machine.
inside() {
    nsenter -t "$leader" --all --wdns=/root -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive bash -c "$1"
}

ask() { inside "printf '$1\n' | nc -N localhost 4242"; }

# What the HTTP server answers; the status code alone with -o /dev/null -w '%{http_code}'.
http() { inside "curl -s -m 10 ${*:2} http://127.0.0.1:4280$1"; }

asks_why() { [ "$(ask WHY)" = 42 ]; }

# The manual's examples: lines that ask, and the literal block that begins with a line.
man_examples() { mandoc -T utf8 man/blockchain-tcpd.8 2>/dev/null | col -bx | sed -n 's/^ *\(printf .*\)/\1/p'; }
man_block() {
    mandoc -T utf8 -O width=200 man/blockchain-tcpd.8 2>/dev/null | col -bx |
        awk -v first="$1" '
            { sub(/^ +/, "") }
            $0 == "" { if (found) done = 1; if (!done) block = ""; next }
            !done { block = block $0 "\n" }
            index($0, first) == 1 { found = 1 }
            END { if (!found) exit 1; printf "%s", block }' || fail "the manual has no block with: $1"
}

make_machine() {
    say "a Debian from nothing: $suite"
    rm -rf "$root"
    if [ "${PRISTINE:-}" != keep ] || [ ! -d "$pristine" ]; then
        rm -rf "$pristine"
        bootstrap
    fi
    # piuparts wants the root as it is; the booted copy is rid of what waits for hardware or the network.
    cp -a "$pristine" "$root"
    local unit
    for unit in console-getty systemd-timesyncd e2scrub_reap nagios4 postgresql exim4 apt-daily.timer apt-daily-upgrade.timer; do
        case $unit in *.timer) ;; *) unit=$unit.service ;; esac
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    # Debian's own service on a socket, to compare with.
    rm -f "$root/etc/systemd/system/multi-user.target.wants/ssh.service"
    mkdir -p "$root/etc/systemd/system/sockets.target.wants"
    ln -sf /usr/lib/systemd/system/ssh.socket "$root/etc/systemd/system/sockets.target.wants/ssh.socket"
    echo blockchain-tcpd-test >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    mkdir -p "$root/srv"
}

bootstrap() {
    make_root "$pristine" --skip=cleanup/apt/lists \
        --include=systemd-sysv,dbus,libpam-systemd,man-db,groff-base,netcat-openbsd,init-system-helpers,openssh-server,curl,nagios4-core,bash-completion,lintian,postgresql \
        --dpkgopt='path-include=/usr/share/man/*' --dpkgopt='path-include=/usr/share/doc/*'
}

# Makes a minimal Debian of this suite in a folder, from where this machine has its packages.
make_root() {
    local root=$1 file ours sources=()
    shift
    ours=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$work/sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.{sources,list}; do
        [ -s "$file" ] || continue
        sed "s/\b$ours\b/$suite/g" "$file" >"$work/sources/${file##*/}"
        sources+=("$work/sources/${file##*/}")
    done
    # Without the fsyncs of dpkg: nothing here outlives a power failure.
    mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io "$@" "$suite" "$root" "${sources[@]}"
    rm -f "$root/usr/sbin/policy-rc.d"
}

boot_machine() {
    # A control group of its own: started from the root group, two machines would share one.
    local hierarchy
    hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    [ -n "$hierarchy" ] || left_out "this machine has no cgroup2"
    cgroup=$hierarchy/$machine
    mkdir -p "$cgroup"
    (
        echo $BASHPID >"$cgroup/cgroup.procs"
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --boot --directory="$root" \
            --machine="$machine" --register=no --keep-unit "${networking[@]}" --link-journal=no \
            --resolv-conf=off --timezone=off --settings=no --capability=CAP_BPF --system-call-filter=bpf \
            --console=read-only </dev/null
    ) >"$work/boot.log" 2>&1 &
    nspawn=$!
    local deadline=$((SECONDS + 30))
    until leader=$(first_child "$nspawn") && [ -n "$leader" ] && inside 'systemctl is-system-running' 2>/dev/null | grep -Eq 'running|degraded'; do
        if ! kill -0 "$nspawn" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
            cat "$work/boot.log" >&2
            leader=
            [ -z "$booted" ] || fail "it doesn't boot any more"
            left_out "systemd-nspawn doesn't boot here"
        fi
        sleep 0.1
    done
    booted=yes
}

first_child() { awk '{ print $1 }' "/proc/$1/task/$1/children" 2>/dev/null; }

stop_machine() {
    [ -n "$nspawn" ] || return 0
    # SIGRTMIN+4 is systemd's word for powering off.
    [ -z "$leader" ] || kill -s RTMIN+4 "$leader" 2>/dev/null || true
    local deadline=$((SECONDS + 15))
    while kill -0 "$nspawn" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.05; done
    kill -s KILL "$nspawn" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
    nspawn=
    leader=
    # systemd-nspawn makes groups of the same name in the other hierarchies, where there are some.
    find "$cgroup" /sys/fs/cgroup/*/"${cgroup##*/}" -depth -type d -exec rmdir {} \; 2>/dev/null || true
}

stop_all() {
    stop_machine
    stop_three_machines
}

# Clients inside the machine: 100 that stay and ask, 50 new ones a second.
start_load() {
    cp tests/support/load.pl "$root/root/load.pl"
    nsenter -t "$leader" --all --wdns=/root -- perl load.pl >"$work/load.out" 2>&1 &
    load=$!
    wait_for "the load" grep -q 'begun' "$work/load.out"
}

# With none-closed, those that stay must have stayed connected all the while. With resets-allowed, clients may have been cut off, as by a crash; none may have been refused.
stop_load() {
    inside 'touch /root/load.stop'
    wait "$load" || fail "the load: $(cat "$work/load.out")"
    inside 'rm /root/load.stop'
    sed 's/^/    /' "$work/load.out"
    grep -q ' refused=0 ' "$work/load.out" || fail "clients were refused"
    grep -q ' late=0 ' "$work/load.out" || fail "clients were kept waiting"
    grep -Eq ' stayed-asked=[1-9]' "$work/load.out" || fail "none of those that stay was answered"
    [ "${1:-}" != none-closed ] || grep -q ' stayed-closed=0 ' "$work/load.out" || fail "those that stay were closed"
    [ "${1:-}" = resets-allowed ] || grep -q ' reset=0 wrong=0 ' "$work/load.out" || fail "clients were cut off"
    local answered
    answered=$(sed -n 's/.* new=\([0-9]*\) .*/\1/p' "$work/load.out")
    [ "${answered:-0}" -gt 20 ] || fail "hardly anybody was answered"
}

# Lets the service have so many clients.
room_for() {
    inside "mkdir -p /etc/systemd/system/blockchain-tcpd.service.d
printf '[Service]\nLimitNOFILE=20000\nTasksMax=$(($1 + 1100))\nEnvironment=BLOCKCHAIN_TCPD_MAX_CLIENTS=$(($1 + 24))\n' \
    >/etc/systemd/system/blockchain-tcpd.service.d/room.conf
systemctl daemon-reload; systemctl restart blockchain-tcpd.service"
}

# Puts the clients of benches/handover into the machine.
load_of_clients() {
    local program
    program=$(cargo bench --locked --no-run --bench handover --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*handover[^"]*\)".*/\1/p')
    cp "$program" "$root/root/handover"
}

# Does `systemctl $1` so many times while so many clients ask with so many milliseconds between two requests, and says how
# long the longest of them waited each time.
everybody_asks() {
    local verb=$1 times=$2 clients=$3 pause=$4 round line
    coproc LOAD { nsenter -t "$leader" --all --wdns=/root -- /root/handover clients 127.0.0.1:4242 "$clients" "$pause"; }
    # Not the shell's: it closes them when the clients end, before they are read to the end.
    local pid=$LOAD_PID from to
    exec {from}<&"${LOAD[0]}" {to}>&"${LOAD[1]}"
    eval "exec ${LOAD[0]}<&- ${LOAD[1]}>&-"
    : >"$work/waits"
    read -r -t 60 line <&$from || fail "the clients"
    for ((round = 1; round <= times; round++)); do
        inside "systemctl $verb blockchain-tcpd.service >/dev/null" || fail "systemctl $verb"
        echo >&$to
        read -r -t 60 line <&$from || fail "the clients"
        echo "${line#longest_ms=}" >>"$work/waits"
    done
    exec {to}>&-
    read -r -t 60 line <&$from || fail "the clients"
    exec {from}<&-
    wait "$pid" || fail "$verb was noticed: $line"
    sort -n "$work/waits" | awk -v what="$verb, $pause ms between requests" \
        '{ wait[NR] = $1 } END { printf "    %s: longest wait of a client: median %s ms, worst %s ms\n", what, wait[int((NR + 1) / 2)], wait[NR] }'
    echo "    $line"
}

run_parts() {
    [ "$(id -u)" -eq 0 ] || left_out "it needs root"
    command -v apt-get >/dev/null || left_out "it needs a Debian"
    # Also what the parts call: nsenter, col and ip, and the servers of a cluster.
    install_missing "${tools_to_build[@]}" "${tools_to_publish[@]}" mmdebstrap systemd-container mandoc piuparts bsdextrautils \
        util-linux iproute2 curl redis-server redis-tools etcd-server make || exit 69
    mkdir -p "$work"
    trap stop_all EXIT
    trap 'exit 130' INT TERM

    say "the package and the next version of it, in an apt repository"
    package=$(packaging/build-deb)
    version=$(dpkg-deb -f "$package" Version)
    local next
    next=$(packaging/build-deb "$version+next")
    # Not where it would be taken for one to publish.
    mv "$next" "$work"
    next=$work/${next##*/}
    versions=("$version" "$version+next")
    packages=("$package" "$next")
    make_machine
    say "boot"
    boot_machine
    local part begun=$SECONDS
    for part in "$@"; do
        say "${part//_/ }"
        "$part"
    done
    say "the package: all passed, in $((SECONDS - begun)) s after the first boot"
    if [ "${BOOTED:-}" = keep ]; then
        echo "the machine runs; its first process is $leader. Enter ends it."
        read -r _
    fi
}
