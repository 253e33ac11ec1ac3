#!/usr/bin/env bash
# Builds for AArch64 and runs under an emulator: the tests of the kernels, and the demo's int8 model with each instruction
# set, whose outputs must equal this machine's byte for byte. For x86-64 Debian; packages are unpacked under target/.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}" CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
work="$CARGO_TARGET_DIR/aarch64-tools"
# The first Debian suite with a new enough rustc and its standard library for arm64, and where that suite's libraries are.
suite=trixie-backports base=trixie
. /etc/os-release
here="${VERSION_CODENAME:-}"

skip() {
    echo "skipped: $1"
    exit 0
}

# An apt of its own: lists, downloads and state under $work, nothing installed.
apt() {
    local command="$1"
    shift
    "$command" -qq -o "Dir::State=$work/apt" -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt" \
        -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Architecture=amd64 -o APT::Architectures=amd64,arm64 -o APT::Sandbox::User=root \
        -o APT::Install-Recommends=false "$@"
}

# Packages of suite $1, with all that they depend on, unpacked to $work/$2.
unpack() {
    local from="$1" to="$work/$2" package
    shift 2
    apt apt-get clean
    apt apt-get install --yes --download-only -t "$from" "$@" || return 1
    mkdir -p "$to"
    for package in "$work"/apt/archives/*.deb; do
        dpkg -x "$package" "$to"
    done
}

tools() {
    local mirror
    rm -rf "$work"
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    touch "$work/apt/status"
    mirror="$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/$')" || return 1
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror %s main\n" "$here" "$base" "$suite" |
        sort -u > "$work/apt/sources.list"
    apt apt-get update || return 1
    unpack "$suite" rust libstd-rust-dev || return 1
    (cd "$work/apt/archives" && rm -f ./*.deb &&
        apt apt-get download "rustc/$suite" "libstd-rust-dev:arm64/$suite") || return 1
    for package in "$work"/apt/archives/*.deb; do
        dpkg -x "$package" "$work/rust"
    done
    unpack "$here" cross gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static || return 1
    # This machine's own loader and C library serve the compiler.
    rm -f "$work"/cross/lib/x86_64-linux-gnu/lib{c,m,dl,rt,pthread}.so.*

    cat > "$work/rustc" <<EOF
#!/bin/sh
lib="$work/rust/usr/lib/x86_64-linux-gnu"
exec "\$lib/ld-linux-x86-64.so.2" --library-path "\$lib" "$work/rust/usr/bin/rustc" --sysroot "$work/rust/usr" "\$@"
EOF
    cat > "$work/aarch64-gcc" <<EOF
#!/bin/sh
root="$work/cross"
export LD_LIBRARY_PATH="\$root/usr/lib/x86_64-linux-gnu:\$root/lib/x86_64-linux-gnu"
exec "\$root/usr/bin/aarch64-linux-gnu-gcc" --sysroot="\$root" -B"\$root/usr/aarch64-linux-gnu/lib" \
    -L"\$root/usr/aarch64-linux-gnu/lib" "\$@"
EOF
    chmod +x "$work/rustc" "$work/aarch64-gcc"
    apt apt-get clean
    touch "$work/complete"
}

[ "$(uname -m)" = x86_64 ] || skip "this machine is no x86-64"
command -v apt-get > /dev/null || skip "no apt-get"
mkdir -p "$CARGO_TARGET_DIR"
[ -e "$work/complete" ] || tools > "$CARGO_TARGET_DIR/aarch64-tools.log" 2>&1 ||
    skip "the packages are not to be had ($CARGO_TARGET_DIR/aarch64-tools.log)"

emulator="$work/cross/usr/bin/qemu-aarch64-static -cpu max -L $work/cross/usr/aarch64-linux-gnu"
aarch64() {
    RUSTC="$work/rustc" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="$work/aarch64-gcc" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator" \
        cargo "$1" --release --quiet --target aarch64-unknown-linux-gnu --target-dir "$CARGO_TARGET_DIR/aarch64" "${@:2}"
}

# Not the tests that start themselves as another process, which needs an emulator known to the kernel.
aarch64 test -p lowbit-kernels --lib --test arguments --test every_table

demo="$CARGO_TARGET_DIR/aarch64/demo"
run="run $demo/digits.int8.onnx --data $demo/test.npz"
cargo run --release --quiet -p lowbit-cli -- demo --output "$demo" > "$demo.txt"
cargo run --release --quiet -p lowbit-cli -- $run --output "$demo/here.npz" > "$demo.txt"
for isa in neondot neon scalar; do
    LOWBIT_ISA=$isa aarch64 run -p lowbit-cli -- $run --output "$demo/$isa.npz" > "$demo.txt"
    cmp "$demo/here.npz" "$demo/$isa.npz"
done
echo "int8 outputs on AArch64 equal those on x86-64: $(sha256sum < "$demo/here.npz" | cut -c -16)"
