#!/bin/sh
# make/venv.sh VENV LOCK: bring a virtual environment up to a lock, every download checked against its hash.
# Silent, and over in some 20 ms, when the environment already holds exactly that lock.
#
# uv does the installing, because it is several times quicker than pip (25 s against 111 s for the 5 GB of
# requirements.lock on two cores). It doesn't read pip's settings, so the ones that matter are handed over; should uv
# fail all the same, pip, which knows every one of your settings, does it.
set -eu

venv=$1
lock=$2
python=${PYTHON:-python3}
mark=$venv/.installed-$(basename "$lock")

if cmp -s "$lock" "$mark" && "$venv/bin/python" -I -S -c '' 2>/dev/null; then
    exit 0
fi

die() {
    echo "$*" >&2
    exit 78
}

# One of pip's settings, whether it stands in the environment (listed first, and stronger) or in a pip.conf.
pip_setting() {
    "$venv/bin/python" -m pip config list 2>/dev/null |
        sed -n "s/^\(:env:\|install\|global\|user\|site\)\.$1='\(.*\)'\$/\2/p" | head -n 1
}

install_with_uv() (
    uv_lock=$(dirname "$0")/../requirements-uv.lock
    grep -q "^uv==$("$venv/bin/uv" --version 2>/dev/null | cut -d ' ' -f 2) " "$uv_lock" ||
        "$venv/bin/python" -m pip install -qq --require-hashes -r "$uv_lock" || exit 1
    index=$(pip_setting index-url)
    extra=$(pip_setting extra-index-url | tr ' ' '\n' | grep -v '^file:' | tr '\n' ' ') || true # uv wants them served
    links=$(pip_setting find-links | tr ' ' ',')
    cert=$(pip_setting cert)
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    [ -z "$extra" ] || export UV_EXTRA_INDEX_URL="$extra"
    [ -z "$links" ] || export UV_FIND_LINKS="$links"
    [ -z "$cert" ] || export SSL_CERT_FILE="$cert"
    # All sources are searched for each package, as pip does: what is installed is settled by the hashes alone.
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    # As pip does. Where Python may not write byte code itself (PYTHONDONTWRITEBYTECODE), each start would compile torch.
    export UV_COMPILE_BYTECODE="${UV_COMPILE_BYTECODE:-1}"
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" --require-hashes -r "$lock"
)

command -v "$python" >/dev/null || die "$python isn't there: install Python 3.11 or newer, or name another: make PYTHON=python3.12 ..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Baton needs Python 3.11 or newer, and $python is $("$python" -V 2>&1 || true). Name another: make PYTHON=python3.12 ..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python can't make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)"

if [ -e "$venv" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
    [ -z "$(find "$venv/." -prune -user "$(id -u)")" ]; then
    die "$venv is another user's and can't be used by this one: have it as your own (chown), or remove it"
fi

began=$(date +%s)
printf 'setting up %s from %s (about 5 GB with CUDA, minutes) ... ' "$venv" "$(basename "$lock")"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
rm -f "$mark"
if ! complaint=$(install_with_uv 2>&1); then
    printf 'uv could not (%s), so pip goes on ... ' "$(echo "$complaint" | tail -n 1)"
    "$venv/bin/python" -m pip install -q --require-hashes -r "$lock"
fi
cp "$lock" "$mark"
echo "done in $(($(date +%s) - began)) s"
