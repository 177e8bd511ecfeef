#!/usr/bin/env bash
# Measures Tombolo and its peers, and prints goals and results.
#   all.sh BINARIES DIR [ROUNDS]     BINARIES: Tombolo's release build; DIR: contenders, results and summary.json
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binaries=$(cd "$1" && pwd)
"$here/setup.sh" "$2"
dir=$(cd "$2" && pwd)
rounds=${3:-5}
export BENCH_BIN="$binaries:$dir/bin"
run=("$here/peers.py" --quick --secs 5 --rounds "$rounds")
stamp=$(date -u +%Y%m%dT%H%M%SZ)
# The references for the possible speed, and all peers that could be built.
"${run[@]}" --skip tunfwd-plain,tunfwd-mmsg,tunfwd-vnet,tunfwd-gso,tunfwd-plain-chacha --out "$dir/$stamp-p2p.jsonl"
"${run[@]}" --underlay-offload off --only wg-go-bpo,tombolo-wg --out "$dir/$stamp-no-offload.jsonl"
"${run[@]}" --transit --only wg-go-bpo,tombolo-wg --out "$dir/$stamp-transit.jsonl"
"$here/floods.py" --out "$dir/$stamp-floods.json"
"$here/table.py" "$dir/$stamp-p2p.jsonl"
"$here/summary.py" --out "$dir/summary.json" "$dir/$stamp"-*.jsonl
