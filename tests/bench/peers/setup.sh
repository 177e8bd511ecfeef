#!/usr/bin/env bash
# Installs the contenders, from registries only. Usage: setup.sh DIR   (then BENCH_BIN=DIR/bin)
# Debian 12 as root. Builds go under DIR/target. Anything that fails is skipped by run.py.
set -u
dir=$(mkdir -p "${1:?usage: setup.sh DIR}" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir/bin"
"$here/../../../.ci/prepare" bench

export CARGO_TARGET_DIR="$dir/target"
# Existing programs are kept; a first build of all takes half an hour.
for c in boringtun-cli@0.7.1 gotatun-cli@0.10.2 quincy-client@3.1.1 quincy-server@3.1.1 vpncloud@2.3.0; do
  timeout 900 cargo install --locked --root "$dir" "$c" || echo "skipped $c"
done
timeout 900 cargo install --locked --root "$dir" easytier@2.0.3 --bin easytier-core || echo "skipped easytier"
rustc --edition 2021 -O -o "$dir/bin/flood" "$here/flood.rs"
for c in tunfwd wgspike; do (cd "$here/$c" && cargo build --release); done
cp "$dir/target/release/tunfwd" "$dir/target/release/wgspike" "$dir/bin/"

# wireguard-go of 2023-12 with TUN offload and UDP GSO/GRO: Debian backports, unpacked, not installed.
t=$(mktemp -d)
mkdir -p "$t/lists/partial" "$t/cache/archives/partial"
# From the mirror that this machine uses.
mirror=$(grep -rhE '^ *(deb|URIs:) ' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
  grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" > "$t/s.list"
o=(-o Dir::Etc::sourcelist="$t/s.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$t/lists" -o Dir::Cache="$t/cache")
(cd "$t" && apt-get "${o[@]}" -qq update && apt-get "${o[@]}" download wireguard-go && dpkg -x wireguard-go_*.deb x &&
  cp x/usr/bin/wireguard-go "$dir/bin/wireguard-go-bpo")
rm -rf "$t"
