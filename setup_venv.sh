#!/usr/bin/env bash
# Makes .venv beside this file and installs what Encore needs, with uv where it is there and pip otherwise: the versions
# that requirements.lock lists, each file compared with its hash.
#   ./setup_venv.sh          what training needs
#   ./setup_venv.sh dev      what the tests and checks need as well (requirements-dev.lock)
#   ./setup_venv.sh newest   likewise (dev newest), but the newest versions that requirements.txt allows, without hashes
# Without a GPU it is 7 GB all the same: the common build of torch needs NVIDIA's libraries to be imported (libtorch_python
# is linked with cuDNN, cuBLAS and NCCL), and a CPU build, from an index of its own, doesn't go with torchaudio's.
# A stamp in .venv, written last, says what is installed: a second run does nothing, an interrupted one starts anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))'

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

dev="" kind=lock
for argument in "$@"; do
    case $argument in
    dev) dev=-dev ;;
    newest) kind=txt ;;
    *) fail "$argument: unknown; give dev, newest, both or nothing" ;;
    esac
done
requirements=requirements$dev.$kind

# stamp_of FILE: what the stamp must say; it changes with Python's version and the requirements.
stamp_of() {
    local files=("$1")
    [ "$1" != requirements-dev.txt ] || files+=(requirements.txt requirements-{app,trackers,docs}.txt)
    .venv/bin/python -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' && cat "${files[@]}" | sha256sum
}

stamped() {
    [ -e ".venv/.installed-$1" ] && [ "$(<".venv/.installed-$1")" = "$(stamp_of "$1" 2>/dev/null)" ]
}

# The first Python that is new enough and can make environments; says what is missing where there is none.
find_python() {
    local name found=() old=""
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        "$name" -c '' 2>/dev/null || continue
        if "$name" -c "$supported"; then found+=("$name"); else old=${old:-$("$name" --version)}; fi
    done
    for name in "${found[@]}"; do
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    if [ ${#found[@]} -gt 0 ]; then
        fail "${found[0]} can't make virtual environments; install its venv module and run this again:" \
            "    sudo apt install ${found[0]}-venv"
    fi
    fail "Encore needs Python 3.10 to 3.14, found ${old:-none}; install one with its venv module and run this again:" \
        "    sudo apt install python3 python3-venv"
}

have_uv() {
    uv --version >/dev/null 2>&1
}

make_venv() {
    local python
    if have_uv; then
        rm -rf .venv
        uv venv --quiet --python '>=3.10,<3.15' .venv
    else
        python=$(find_python)
        rm -rf .venv
        "$python" -m venv .venv || { rm -rf .venv; fail "$python -m venv .venv failed, see above"; }
    fi
}

# Drops the settings of this machine that change what is installed or where (user, target, constraints, links to other
# builds of torch); those that say how to reach the packages (index, proxy, certificates) stay.
clean_settings() {
    local key name value settings reach=()
    settings=$(.venv/bin/python -m pip config list 2>/dev/null || true)
    unset UV_TORCH_BACKEND UV_FIND_LINKS UV_CONSTRAINT UV_OVERRIDE
    for key in index-url proxy cert client-cert trusted-host timeout; do
        name=PIP_${key//-/_}
        name=${name^^}
        value=${!name:-$(sed -n "s/^global\.$key='\(.*\)'$/\1/p" <<<"$settings")}
        # pip shows a value of several lines with \n between them.
        [ -z "$value" ] || reach+=("$name=${value//\\n/ }")
    done
    for name in "${!PIP_@}"; do
        [ "$name" = PIP_CACHE_DIR ] || unset "$name"
    done
    export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 "${reach[@]}"
}

install() {
    local installer=(.venv/bin/python -m pip install) how=(--require-hashes) done_for
    [ "$kind" = lock ] || how=(--upgrade)
    clean_settings
    have_uv && installer=(uv pip install --python .venv/bin/python)
    echo "Installing $requirements into .venv; the first time this downloads several GB."
    # The mark stays where the install is cut short: what lies half unpacked then is not built upon.
    touch .venv/.installing
    rm -f .venv/.installed-*
    "${installer[@]}" "${how[@]}" -r "$requirements" ||
        fail "could not install $requirements, see above; check the network and the disk (8 GB), and run this again"
    # What the tests need is enough for training, and the newest versions are left alone until the locked ones change.
    for done_for in "requirements.$kind" "$requirements" requirements.lock "requirements$dev.lock"; do
        stamp_of "$done_for" >".venv/.installed-$done_for"
    done
    rm .venv/.installing
}

usable() {
    [ ! -e .venv/.installing ] && .venv/bin/python -c "$supported" 2>/dev/null &&
        { have_uv || .venv/bin/python -m pip --version >/dev/null 2>&1; }
}

if ! stamped "$requirements"; then
    usable || make_venv
    install
fi
