# Sourced by the other scripts: root, packages, kubectl, Rust, builds. Defines functions only; $here is the root.
# shellcheck shell=bash

fail() { # fail CAUSE REMEDY
    printf 'error: %s\nremedy: %s\n' "$1" "$2" >&2
    exit 1
}

say() { printf '==> %s\n' "$*"; }

# Starts the script again through sudo unless this is root already; keeps the way to cargo.
as_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null || fail "not root, and no sudo here" "run it as root"
    say "this needs root: going through sudo"
    exec sudo env "PATH=$PATH" "CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}" \
        "CARGO_TARGET_DIR=$(target_dir)" "CI=${CI:-}" ${FLOTILLA_BIN_DIR:+"FLOTILLA_BIN_DIR=$FLOTILLA_BIN_DIR"} \
        ${FLOTILLA_SPEC_DIR:+"FLOTILLA_SPEC_DIR=$FLOTILLA_SPEC_DIR"} "$@"
}

target_dir() { echo "${CARGO_TARGET_DIR:-${here:?}/target}"; }

# Cargo's folder for a profile.
profile_dir() { [ "$1" = dev ] && echo debug || echo "$1"; }

# The address of this machine that others reach it by.
own_address() {
    local address
    address=$(ip -o route get 203.0.113.1 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')
    echo "${address:-$(hostname)}"
}

packages_of() {
    case $1 in
        build) echo "gcc libc6-dev pkg-config libseccomp-dev libnftnl-dev libmnl-dev libelf-dev zlib1g-dev" ;;
        run) echo "nftables iptables iproute2 util-linux procps curl" ;;
        lab) echo "nftables iptables iproute2 util-linux procps curl busybox-static docker-registry" ;;
        sample) echo "busybox-static curl" ;;
        vm) echo "mmdebstrap e2fsprogs" ;;
        test) echo "skopeo umoci runc conntrack netcat-openbsd shellcheck faketime bsdutils protobuf-compiler libprotobuf-dev" ;;
    esac
}

ensure_packages() { # ensure_packages PURPOSE…
    local purpose package missing=()
    for purpose in "$@"; do
        for package in $(packages_of "$purpose"); do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
        done
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null ||
        fail "packages are missing: ${missing[*]}" "install them with this system's package manager"
    say "installing ${missing[*]}"
    apt-get update -qq || fail "apt-get update failed" "check the network and /etc/apt/sources.list"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get install ${missing[*]} failed" "run it by hand and read what it says"
}

# QEMU for the virtual machine of the tests. Where other parts of QEMU came from backports, so must this.
try_qemu() {
    command -v qemu-system-x86_64 >/dev/null && return
    [ "$(dpkg --print-architecture)" = amd64 ] || return 0
    say "installing qemu-system-x86"
    local quiet=(-y -qq --no-install-recommends) dir
    DEBIAN_FRONTEND=noninteractive apt-get install "${quiet[@]}" qemu-system-x86 >/dev/null 2>&1 && return
    dir=$(mktemp -d)
    mkdir -p "$dir/lists/partial"
    local key=/usr/share/keyrings/debian-archive-keyring.gpg mirror=http://deb.debian.org/debian
    printf 'deb [signed-by=%s] %s %s main\n' "$key" $mirror bookworm "$key" $mirror bookworm-backports >"$dir/list"
    local only=(-o "Dir::Etc::SourceList=$dir/list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$dir/lists")
    # shellcheck disable=SC2015
    apt-get "${only[@]}" update -qq >/dev/null 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get "${only[@]}" install "${quiet[@]}" -t bookworm-backports qemu-system-x86 \
            >/dev/null 2>&1 || say "warning: qemu-system-x86 could not be installed"
    rm -r "$dir"
}

# A real etcd and its etcdctl, for tests and figures that compare with it. No service of it starts, now or at the next boot.
ensure_etcd() {
    command -v etcd >/dev/null && command -v etcdctl >/dev/null && return
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 0755 $policy
        made=1
    fi
    say "installing etcd-server etcd-client"
    # shellcheck disable=SC2015
    apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends etcd-server etcd-client >/dev/null ||
        say "warning: etcd could not be installed; what compares with it is skipped"
    [ -z "$made" ] || rm -f $policy
    systemctl disable --quiet etcd 2>/dev/null || true
}

ensure_rust() {
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin
    [ -d "$bin" ] && PATH=$bin:$PATH
    command -v cargo >/dev/null ||
        fail "Rust is missing" "install it from https://rustup.rs (as the same user), then run this again"
}

# The version of Kubernetes that the API serves.
KUBERNETES_VERSION=v1.36.2

ensure_kubectl() {
    local minor
    if command -v kubectl >/dev/null; then
        minor=$(kubectl version --client 2>/dev/null | sed -n 's/.*v1\.\([0-9]*\).*/\1/p' | head -1)
        [ "${minor:-0}" -ge 28 ] || say "warning: kubectl 1.${minor:-?} is old for this API; some verbs may not work"
        return
    fi
    fetch_kubectl && return
    say "warning: kubectl $KUBERNETES_VERSION could not be fetched; taking Debian's old one, some verbs may not work"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null ||
        fail "no kubectl to be had" "put a kubectl of version 1.28 or newer on the PATH"
}

fetch_kubectl() {
    local arch url dir
    arch=$(dpkg --print-architecture)
    [ "$arch" = armhf ] && arch=arm
    url=https://dl.k8s.io/release/$KUBERNETES_VERSION/bin/linux/$arch/kubectl
    dir=$(mktemp -d)
    say "fetching kubectl $KUBERNETES_VERSION"
    if curl -fsSL --max-time 120 -o "$dir/kubectl" "$url" && curl -fsSL --max-time 30 -o "$dir/sum" "$url.sha256" &&
        echo "$(cat "$dir/sum")  $dir/kubectl" | sha256sum -c --quiet; then
        install -m 755 "$dir/kubectl" /usr/local/bin/kubectl
        rm -r "$dir"
        return 0
    fi
    rm -r "$dir"
    return 1
}

# Builds the product and the harness; the test server is linked statically, so that it can be an image alone.
build_binaries() { # build_binaries PROFILE
    local profile=$1 out
    ensure_rust
    out=$(target_dir)/$(profile_dir "$profile")
    say "building (profile $profile)"
    cargo build --manifest-path "$here/Cargo.toml" --locked --profile "$profile" --bin agent --bin controlplane --bin lab --bin bench --bin soak ||
        fail "the build failed" "read the compiler's message above"
    if [ ! -x "$out/testserver" ] || [ "$here/tests/examples/testserver.rs" -nt "$out/testserver" ]; then
        rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -o "$out/testserver" \
            "$here/tests/examples/testserver.rs" || fail "the test server could not be built" "read the message above"
    fi
}
