# Installs the Debian packages that a script needs; sourced by tests/run, tests/package, build-deb and apt-repository.
#
# With SETUP_ONLY=1 in the environment the script ends once its packages are installed: `SETUP_ONLY=1 make test` prepares a
# machine.

# Packages for build-deb and apt-repository. cargo links with cc and compiles a little C.
tools_to_build=(debhelper dpkg-dev fakeroot gcc libc6-dev libnghttp2-dev)
tools_to_publish=(apt-utils dpkg-dev gnupg)

# Prints those of these packages that are not installed, one per line. dpkg-query fails for a package unknown to dpkg.
not_installed() {
    local package
    for package; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

# Installs those of these packages that are missing. On another system than Debian, or without root, it fails and names
# them.
install_missing() {
    local lacking
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "${0##*/}: this is no Debian; on one, these packages would be needed: $*" >&2
        return 1
    fi
    lacking=$(not_installed "$@")
    if [ -n "$lacking" ]; then
        if [ "$(id -u)" -ne 0 ]; then
            echo "${0##*/}: install these packages first, or run it as root:" $lacking >&2
            return 1
        fi
        echo "${0##*/}: installing" $lacking >&2
        # shellcheck disable=SC2086
        apt_install $lacking >&2 || exit
    fi
    [ "${SETUP_ONLY:-}" != 1 ] || exit 0
}

# Runs in a subshell, for its trap. Services of the packages are not started: tests start their own.
apt_install() (
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" || exit
    fi
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null
)
