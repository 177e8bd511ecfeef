#!/bin/sh
# Creates the networks, and writes a join token to a file for each agent that has not joined yet. A second run changes no network
# and no agent that has joined. For the other agents it writes new tokens.
set -eu
umask 027
tombolo apply --yes -f /etc/tombolo/network.yaml

# token AGENT OPTION…: writes a token for AGENT. The options are those of `tombolo token create`.
token() {
    agent=$1
    shift
    if tombolo agent show "$agent" >/dev/null 2>&1; then
        echo "$agent has joined"
        return
    fi
    file=/var/lib/tombolo-tokens/$agent
    answer=$(tombolo token create --output json --agent "$agent" "$@")
    printf '%s\n' "$answer" | sed -n 's/^ *"token": *"\(.*\)",*$/\1/p' >"$file.new"
    [ -s "$file.new" ] || { echo "no token in the answer to 'tombolo token create --agent $agent'" >&2; exit 1; }
    # A waiting agent may read the file at any time. So the token is written to another file, which is then renamed.
    mv "$file.new" "$file"
    echo "$agent has a token"
}

for vm in hub-vm hub-fw spoke-a-vm spoke-b-vm branch-vm; do
    token "$vm" --vm "$vm" --nic "$vm-nic"
done
for gateway in hub-gw branch-gw; do
    token "$gateway" --gateway "$gateway"
done
