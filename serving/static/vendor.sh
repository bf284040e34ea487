#!/bin/sh
# Fetches the libraries of the pages from the npm registry into vendor/, at the versions below, and checks each package
# against its SHA-512. `make vendor` runs it. The files are committed: neither a build nor a page fetches anything.
set -eu
cd "$(dirname "$0")"

fetch() {  # name, version, SHA-512 in base64, files of the package...
    name=$1 version=$2 integrity=$3
    shift 3
    work=$(mktemp -d)
    curl --fail --silent --show-error --location --output "$work/package.tgz" \
        "https://registry.npmjs.org/$name/-/$name-$version.tgz"
    found=$(openssl dgst -sha512 -binary "$work/package.tgz" | openssl base64 -A)
    if [ "$found" != "$integrity" ]; then
        echo "$name $version: its SHA-512 is $found, not $integrity: nothing was changed" >&2
        exit 1
    fi
    tar -xzf "$work/package.tgz" -C "$work"
    rm -rf "vendor/$name"
    mkdir -p "vendor/$name"
    for file in "$@"; do
        cp "$work/package/$file" "vendor/$name/"
    done
    rm -r "$work"
    echo "vendor/$name: $version"
}

fetch swagger-ui-dist 5.35.0 \
    U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ== \
    swagger-ui-bundle.js swagger-ui.css LICENSE NOTICE swagger-ui-bundle.js.LICENSE.txt
