#!/bin/sh
# etcd 3.4.23 (Debian 12, etcd-server 3.4.23-4+b4): the JSON gateway is on by default when etcd is configured by flags, and off when
# the same settings stand in a configuration file, which needs the line "enable-grpc-gateway: true". In 3.5.16 (Debian 13, etcd-server
# 3.5.16-4) it is on both ways.
#
# One would guess: the same settings, the same server. Seen of POST /v3/maintenance/status: 3.4.23 flags 200, file 404, file with that line
# 200; 3.5.16 200 each time.
set -eu
cd "$(dirname "$0")"
. lib/etcd.sh
failed=0

# The status of the gateway of an etcd that was started with these arguments, as soon as it is healthy.
status() {
    start "$program" "$@"
    seen=$(curl -s -o /dev/null -w '%{http_code}' -d '{}' http://127.0.0.1:23790/v3/maintenance/status)
    end
}

for release in bookworm/3.4.23-4+b4/404 trixie/3.5.16-4/200; do
    without=${release##*/} release=${release%/*}
    lib/fetch-deb "${release%/*}" "etcd-server=${release#*/}" "$dir/${release%/*}"
    program=$dir/${release%/*}/usr/bin/etcd
    status --data-dir "$dir/a-${release%/*}" --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 \
        --listen-peer-urls http://127.0.0.1:23800 --listen-metrics-urls http://127.0.0.1:23810
    flags=$seen
    cat >"$dir/etcd.yml" <<END
data-dir: $dir/b-${release%/*}
listen-client-urls: http://127.0.0.1:23790
advertise-client-urls: http://127.0.0.1:23790
listen-peer-urls: http://127.0.0.1:23800
listen-metrics-urls: http://127.0.0.1:23810
END
    status --config-file "$dir/etcd.yml"
    file=$seen
    echo "enable-grpc-gateway: true" >>"$dir/etcd.yml"
    status --config-file "$dir/etcd.yml"
    echo "etcd ${release#*/}: flags $flags, file $file, file with enable-grpc-gateway $seen"
    [ "$flags $file $seen" = "200 $without 200" ] || failed=1
done
exit $failed
