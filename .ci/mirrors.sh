# For scripts that make a root of this host's distribution with mmdebstrap; they source this file.

# mirrors FOLDER: writes the package mirrors of this host's release to FOLDER/sources.list (a bare machine has no others), and
# apt's settings for them to FOLDER/apt.conf. Sets VERSION_CODENAME. If RELEASE is set, another
# release of the distribution takes the place of the host's.
mirrors() {
    local folder=$1 uri release component line
    . /etc/os-release
    while IFS='|' read -r uri release component; do
        if [[ $release == "$VERSION_CODENAME" || $release == "$VERSION_CODENAME"-* ]]; then
            echo "deb $uri $release $component"
        fi
    done < <(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages') >"$folder/sources.list"
    [ -s "$folder/sources.list" ] ||
        { echo "this host has no package mirror of $VERSION_CODENAME, or 'apt-get update' never ran" >&2; return 1; }
    if [ -n "${RELEASE:-}" ]; then
        # The suites for updates and fixes have other names in other releases; the release itself is on every mirror.
        sed -i "/ $VERSION_CODENAME-/d; s/ $VERSION_CODENAME / $RELEASE /" "$folder/sources.list"
        VERSION_CODENAME=$RELEASE
    fi
    while IFS= read -r line; do
        case $line in
        Acquire::http::* | Acquire::https::* | Acquire::Check-* | Acquire::Retries*) echo "$line" ;;
        esac
    done < <(apt-config dump) >"$folder/apt.conf"
}
