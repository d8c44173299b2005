#!/bin/sh
# etcd 3.4.23 (Debian 12, etcd-server 3.4.23-4+b4) and 3.5.16 (Debian 13, 3.5.16-4): --trusted-ca-file without --client-cert-auth has the
# client port demand certificates all the same. Whoever names the authority so that etcd knows it locks out the clients that have none.
#
# One would guess: --client-cert-auth, whose default is false, decides, and --trusted-ca-file alone changes nothing.
# Seen of GET /health: without --trusted-ca-file 200; with it no answer to a client without a certificate, 200 to one that has one.
set -eu
cd "$(dirname "$0")"
. lib/etcd.sh
failed=0
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $new -keyout "$dir/ca.key" -out "$dir/ca.pem" -days 3 -subj "/CN=authority" 2>/dev/null
for name in server client; do
    # shellcheck disable=SC2086
    openssl req $new -keyout "$dir/$name.key" -out "$dir/$name.csr" -subj "/O=$name" 2>/dev/null
    echo "subjectAltName=IP:127.0.0.1" >"$dir/extensions"
    openssl x509 -req -in "$dir/$name.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -out "$dir/$name.pem" -days 3 \
        -extfile "$dir/extensions" 2>/dev/null
done

# Starts etcd with these arguments besides, and prints what a client without a certificate gets, and one with.
try() {
    start "$program" --data-dir "$dir/$1" --cert-file "$dir/server.pem" --key-file "$dir/server.key" \
        --listen-client-urls https://127.0.0.1:23790 --advertise-client-urls https://127.0.0.1:23790 \
        --listen-peer-urls http://127.0.0.1:23800 --listen-metrics-urls http://127.0.0.1:23810 $2
    get() { curl -s -o /dev/null -w '%{http_code}' --cacert "$dir/ca.pem" "$@" https://127.0.0.1:23790/health || true; }
    seen="$(get) $(get --cert "$dir/client.pem" --key "$dir/client.key")"
    end
}

for release in bookworm/3.4.23-4+b4 trixie/3.5.16-4; do
    lib/fetch-deb "${release%/*}" "etcd-server=${release#*/}" "$dir/${release%/*}"
    program=$dir/${release%/*}/usr/bin/etcd
    try "plain-${release%/*}" ""
    plain=$seen
    try "trusting-${release%/*}" "--trusted-ca-file $dir/ca.pem"
    echo "etcd ${release#*/}: without --trusted-ca-file $plain, with it $seen (client without a certificate, client with one; 000 is no answer)"
    [ "$plain / $seen" = "200 200 / 000 200" ] || failed=1
done
exit $failed
