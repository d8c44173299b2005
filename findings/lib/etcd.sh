# Starts and ends an etcd for a script of findings/, which sources this: $dir is a temporary folder that goes with the script.
dir=$(mktemp -d)
etcd=
end() {
    [ -z "$etcd" ] || { kill "$etcd" 2>/dev/null || true; wait "$etcd" 2>/dev/null || true; }
    etcd=
}
trap 'end; rm -rf "$dir"' EXIT

# Starts this program with these arguments, and returns when it is healthy, after 10 s at the latest. It tells its health at port 23810.
start() {
    "$@" >"$dir/log" 2>&1 &
    etcd=$!
    for _ in $(seq 100); do
        curl -sf http://127.0.0.1:23810/health >/dev/null && break
        sleep 0.1
    done
}
