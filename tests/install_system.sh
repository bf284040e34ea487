#!/bin/sh
# What tests need beyond pip: a browser and a Redis server, from Debian's packages, where we are root.
# Without root the tests fall back (the Valkey server of a wheel) or skip, saying so.
set -eu
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v redis-server >/dev/null || missing="$missing redis-server"
ldconfig -p | grep -q libgomp.so.1 || missing="$missing libgomp1"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed, and not root on Debian:$missing (tests fall back or skip)"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
