# Three booted machines in a network of their own, beside whatever serves them there; for tests/package.

# The namespace with the bridge, and with the servers that run outside of the machines.
network=blockchain-tcpd-test-$$
network_address=10.77.0.1
leaders=()
nspawns=()
cgroups=()
roots=()
helpers=()

# Runs a command where all machines can be reached.
outside() { ip netns exec "$network" "$@"; }

# Makes the machine of this number, from 0 on, the one that `inside` means.
choose() {
    leader=${leaders[$1]}
    nspawn=${nspawns[$1]}
    cgroup=${cgroups[$1]}
    root=${roots[$1]}
}

address_of() { echo "10.77.0.$((11 + $1))"; }

# Stops the machine that there is, and boots it three times.
boot_three_machines() {
    local number other
    stop_machine
    ip netns add "$network"
    outside ip link set lo up
    outside ip link add bridge type bridge
    outside ip address add "$network_address/24" dev bridge
    outside ip link set bridge up
    roots=("$root")
    # An id of its own for each, and of the machine itself, too.
    rm -rf "$root"/var/lib/private/blockchain-tcpd "$root"/var/lib/blockchain-tcpd "$root/etc/machine-id"
    : >"$root/etc/machine-id"
    for number in 1 2; do
        other=$work/root$number
        rm -rf "$other"
        cp -a "$root" "$other"
        roots+=("$other")
    done
    for number in 0 1 2; do
        ip netns add "$network-$number"
        outside ip link add "to$number" type veth peer name eth0 netns "$network-$number"
        outside ip link set "to$number" master bridge up
        ip -n "$network-$number" link set lo up
        ip -n "$network-$number" address add "$(address_of "$number")/24" dev eth0
        ip -n "$network-$number" link set eth0 up
        root=${roots[$number]}
        leader=
        nspawn=
        networking=("--network-namespace-path=/run/netns/$network-$number")
        machine=blockchain-tcpd-test-$$-$number
        boot_machine
        leaders[number]=$leader
        nspawns[number]=$nspawn
        cgroups[number]=$cgroup
    done
}

# Starts a server where the machines can reach it, and remembers to end it.
start_outside() {
    # Not by the function, whose shell would be what is ended.
    ip netns exec "$network" "$@" >"$work/outside.log" 2>&1 &
    helpers+=($!)
}

stop_three_machines() {
    local number pid
    for number in "${!leaders[@]}"; do
        choose "$number"
        stop_machine
        leaders[number]=
    done
    for pid in "${helpers[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    helpers=()
    for number in 0 1 2; do
        ip netns delete "$network-$number" 2>/dev/null || true
    done
    ip netns delete "$network" 2>/dev/null || true
    leaders=()
}
