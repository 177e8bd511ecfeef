#!/bin/sh
# Makes the networks, and leaves a join token in a file for each agent that has not joined yet. Repeating it changes nothing.
set -eu
umask 027
tombolo apply --yes -f /etc/tombolo/network.yaml

# token AGENT OPTION…: as `tombolo token create` takes them.
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
    # Agents look for the file all the time: it appears whole.
    mv "$file.new" "$file"
    echo "$agent has a token"
}

for vm in hub-vm hub-fw spoke-a-vm spoke-b-vm branch-vm; do
    token "$vm" --vm "$vm" --nic "$vm-nic"
done
for gateway in hub-gw branch-gw; do
    token "$gateway" --gateway "$gateway"
done
