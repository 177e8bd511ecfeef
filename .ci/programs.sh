# Reads .ci/programs; for scripts in this folder, which source it.

programs_file=$(dirname "${BASH_SOURCE[0]}")/programs

# listed GROUP…: prints program and package of each line for one of the groups.
listed() {
    local program package groups group
    while read -r program package groups; do
        [[ -n $program && $program != \#* ]] || continue
        for group in "$@"; do
            if [[ ,$groups, == *,$group,* ]]; then
                echo "$program $package"
                break
            fi
        done
    done <"$programs_file"
}

# locate PROGRAM: sets REPLY to its path; fails if it is missing. The system's folders come first: the list names the
# packages of the system, and some of these folders are not on every user's PATH.
locate() {
    local dir
    local IFS=:
    for dir in /usr/sbin /usr/bin /sbin /bin $PATH; do
        REPLY=$dir/$1
        if [[ $dir == /* && -f $REPLY && -x $REPLY ]]; then
            return 0
        fi
    done
    return 1
}
