#!/bin/sh
# The built wheel, away from the checkout: installed, imported, trained and served in an empty folder.
# On the Python of .venv with the packages that are there; on each other supported Python on PATH with the packages
# that pip brings (core, cpu, serve, train, track, demo).
set -eu
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --outdir "$work" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/*.whl)

check() {  # check VENV
  mkdir -p "$work/empty"
  (cd "$work/empty" && "$1/bin/python" "$root/tests/smoke_check.py")
  rm -rf "$work/empty"
}

.venv/bin/python -m venv --without-pip "$work/own"
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$work/own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m pip --python "$work/own/bin/python" install --quiet --disable-pip-version-check --no-deps "$wheel"
echo "$packages" > "$own/packages.pth"  # the packages of .venv, but not the checkout, which a .pth file there names
check "$work/own"

used=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.11 3.12 3.13; do
  [ "$version" != "$used" ] || continue
  "python$version" -c 'import venv, ensurepip' 2> /dev/null || { echo "python$version is not here: not checked"; continue; }
  "python$version" -m venv "$work/$version"
  "$work/$version/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    "onespace-recsys[cpu,serve,train,track,demo] @ file://$wheel"
  RECSYS__ENCODER=null check "$work/$version"
done
