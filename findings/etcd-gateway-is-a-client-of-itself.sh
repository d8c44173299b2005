#!/bin/sh
# etcd 3.4.23 (Debian 12, etcd-server 3.4.23-4+b4) with --client-cert-auth: its JSON gateway talks to etcd as a client and shows the
# server's own certificate. One that is made for servers only (extendedKeyUsage=serverAuth) is a right certificate for the port, and every
# call of the gateway fails; native gRPC clients work.
#
# One would guess: the certificate of the server is shown to clients only. Seen with a right client certificate: /health 200;
# /v3/maintenance/status 503 with a certificate for servers, 200 with one for both.
set -eu
cd "$(dirname "$0")"
. lib/etcd.sh
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $new -keyout "$dir/ca.key" -out "$dir/ca.pem" -days 3 -subj "/CN=authority" 2>/dev/null
certify() {
    # shellcheck disable=SC2086
    openssl req $new -keyout "$dir/$1.key" -out "$dir/$1.csr" -subj "/O=$1" 2>/dev/null
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=%s\n' "$2" >"$dir/extensions"
    openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -out "$dir/$1.pem" -days 3 \
        -extfile "$dir/extensions" 2>/dev/null
}
certify client clientAuth
certify server serverAuth
certify both serverAuth,clientAuth
lib/fetch-deb bookworm etcd-server=3.4.23-4+b4 "$dir/root"

try() {
    start "$dir/root/usr/bin/etcd" --data-dir "$dir/data-$1" --cert-file "$dir/$1.pem" --key-file "$dir/$1.key" --client-cert-auth \
        --trusted-ca-file "$dir/ca.pem" --listen-client-urls https://127.0.0.1:23790 --advertise-client-urls https://127.0.0.1:23790 \
        --listen-peer-urls http://127.0.0.1:23800 --listen-metrics-urls http://127.0.0.1:23810
    call() {
        curl -s -o /dev/null -w '%{http_code}' --max-time 20 --cacert "$dir/ca.pem" --cert "$dir/client.pem" --key "$dir/client.key" "$@" || true
    }
    seen="health $(call https://127.0.0.1:23790/health), gateway $(call -d '{}' https://127.0.0.1:23790/v3/maintenance/status)"
    end
    echo "a certificate for $1: $seen"
}
try server
first=$seen
try both
[ "$first; $seen" = "health 200, gateway 503; health 200, gateway 200" ]
