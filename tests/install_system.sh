#!/bin/sh
# What tests need beyond pip: a browser, a Redis server and promtool, from Debian's packages, where we are root.
# Without root the tests fall back (the Valkey server of a wheel) or skip, saying so.
set -eu
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v redis-server >/dev/null || missing="$missing redis-server"
ldconfig -p | grep -q libgomp.so.1 || missing="$missing libgomp1"
command -v promtool >/dev/null && promtool="" || promtool=" promtool"
[ -n "$missing$promtool" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed, and not root on Debian:$missing$promtool (tests fall back or skip)"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
[ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null
if [ -n "$promtool" ]; then # the program alone: the package would start a server
  folder=$(mktemp -d) && chmod 755 "$folder"
  (cd "$folder" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && install usr/bin/promtool /usr/local/bin)
  rm -rf "$folder"
fi
