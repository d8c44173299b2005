#!/bin/sh
# etcd's JSON gateway, 3.4.23 (Debian 12) and 3.5.16 (Debian 13): the same refusal (gRPC code 9, FailedPrecondition) has another HTTP
# status and another body. A client that asks for 412, or reads the member "error", misses it after an upgrade within version 3; only
# the member "code" stays.
#
# Asked: to switch authentication on while there is no user root.
# Seen: 3.4.23 412 and {"error":…,"message":…,"code":9}; 3.5.16 400 and {"code":9, "message":…}, without "error".
set -eu
cd "$(dirname "$0")"
. lib/etcd.sh
failed=0
for case in bookworm/3.4.23-4+b4/412/code,error,message trixie/3.5.16-4/400/code,message; do
    IFS=/ read -r suite version status members <<END
$case
END
    lib/fetch-deb "$suite" "etcd-server=$version" "$dir/$suite"
    start "$dir/$suite/usr/bin/etcd" --data-dir "$dir/data-$suite" --listen-client-urls http://127.0.0.1:23790 \
        --advertise-client-urls http://127.0.0.1:23790 --listen-peer-urls http://127.0.0.1:23800 --listen-metrics-urls http://127.0.0.1:23810
    seen=$(curl -s -o "$dir/body" -w '%{http_code}' -d '{}' http://127.0.0.1:23790/v3/auth/enable)
    names=$(python3 -c 'import json, sys
reply = json.load(open(sys.argv[1]))
assert reply["code"] == 9, reply
print(",".join(sorted(name for name in reply if name != "details")))' "$dir/body")
    end
    echo "etcd $version: HTTP $seen, members $names: $(cat "$dir/body")"
    [ "$seen $names" = "$status $members" ] || failed=1
done
exit $failed
