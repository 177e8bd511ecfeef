#!/usr/bin/env python3
"""Instructions of the engine for each packet: the working tree compared with an earlier commit.

    instructions.py COMMIT [--count 9000] [--own-example]

Builds `agent/engine/examples/packets.rs` in release mode from both (the commit in a git worktree under the target folder, with
the working tree's example; with --own-example, where the engine's functions have changed, with its own), runs both under callgrind with two counts, and prints the difference per packet and its ratio. The
same binary gives the same count, independent of other load. A packet crosses both engines: read, decided, sealed,
opened, checked and written. Needs valgrind. Exits non-zero if a ratio is over 1.02.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys

GOAL = 1.02
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
EXAMPLES = "agent/engine/examples"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()}")
    return done


def build(tree, target):
    run("cargo", "build", "--locked", "--release", "--workspace", "--example", "packets", cwd=tree,
        env={**os.environ, "CARGO_TARGET_DIR": target})
    return os.path.join(target, "release/examples/packets")


def count(binary, kind, packets):
    done = run("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, kind, str(packets))
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if not collected:
        sys.exit(f"callgrind gave no count: {done.stderr.strip()}")
    return int(collected[1])


def per_packet(binary, kind, packets):
    return (count(binary, kind, 3 * packets) - count(binary, kind, packets)) / (2 * packets)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--count", type=int, default=9000)
    parser.add_argument("--own-example", action="store_true")
    options = parser.parse_args()
    target = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
    folder = os.path.join(target, "instructions")
    before = os.path.join(folder, "before")
    if os.path.exists(before):
        run("git", "-C", ROOT, "worktree", "remove", "--force", before)
    run("git", "-C", ROOT, "worktree", "add", "--force", "--detach", before, options.commit)
    try:
        if not options.own_example:
            shutil.copytree(os.path.join(ROOT, EXAMPLES), os.path.join(before, EXAMPLES), dirs_exist_ok=True)
        binaries = {}
        for name, tree in (("before", before), ("now", ROOT)):
            binaries[name] = os.path.join(folder, f"packets-{name}")
            # A folder for each tree: cargo compares times of files alone, and would take the other tree's build for its own.
            shutil.copy(build(tree, os.path.join(folder, f"target-{name}")), binaries[name])
        good = True
        for kind in ("bulk", "lone"):
            old, new = (per_packet(binaries[name], kind, options.count) for name in ("before", "now"))
            ratio = new / old
            good &= ratio <= GOAL
            print(f"{kind}: {old:.0f} instructions a packet before, {new:.0f} now, ratio {ratio:.3f} (goal: at most {GOAL})"
                  f"{'' if ratio <= GOAL else '   MISSED'}", flush=True)
            groups = per_packet(binaries["now"], kind + "-groups", options.count)
            print(f"{kind}: {groups:.0f} with two groups of 1,000 rules at each end, ratio to none {groups / new:.3f}", flush=True)
    finally:
        run("git", "-C", ROOT, "worktree", "remove", "--force", before)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
