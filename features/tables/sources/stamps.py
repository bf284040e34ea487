"""Source `stamps`: the pictures, descriptions and sounds of Tux Paint's stamps, from a Debian package.

The package tuxpaint-stamps-default has a folder for each category. A stamp is NAME.png or NAME.svg with NAME.txt, its
description in English and, a line each, in other languages (`de.utf8=…`), and for some NAME.ogg or NAME.wav, its
sound. It has no behaviour: the shoppers are simulated.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import polars as pl

from features.errors import SourceError
from features.schema import AUDIO, CATEGORIES, DESCRIPTION, IMAGE, ITEM, TITLE, DataConfig
from features.tables.sources.extract import Extract, expanded_origin, origin_path

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
EXPECTED = f"the package {PACKAGE} as a .deb file, or its folder {STAMPS}"
TERMS = "Tux Paint stamps by Bill Kendrick and others: GPL-2; whoever passes them on passes on the licence"
LANGUAGES = ("de", "fr", "es", "ja", "zh_CN")
"""Languages of the description; the title is English."""

SOUNDS = (".ogg", ".wav")


def extract(config: DataConfig) -> Extract:
    """The stamps that have a picture as PNG, without events.

    ``config.origin`` is null: the package is fetched by apt-get into ``config.path``; or a .deb file, which is
    unpacked there; or a folder of stamps, which is read where it is. Raises SourceError.
    """
    into = Path(config.path)
    if expanded_origin(config) is None:
        folder = _fetched(into)
    elif (path := origin_path(config, EXPECTED)).is_file():
        folder = _unpack(path, into)
    else:
        folder = path
    described = sorted(path for path in folder.rglob("*.txt") if path.with_suffix(".png").is_file())
    if not described:
        raise SourceError(f"{folder}: no stamp (NAME.png with NAME.txt) is in it; data.origin must be {EXPECTED}")
    drawn = [path for path in folder.rglob("*.txt") if path.with_suffix(".svg").is_file()]
    left_out = len({*drawn} - {*described})
    items = pl.DataFrame(
        [_stamp(path, folder, into) for path in described],
        schema={
            **dict.fromkeys((ITEM, TITLE, DESCRIPTION), pl.String),
            CATEGORIES: pl.List(pl.String),
            **dict.fromkeys((IMAGE, AUDIO), pl.String),
        },
    )
    sounds = items.get_column(AUDIO).count()
    return Extract(
        items=items.lazy(),
        events=None,
        origin=f"Debian package {PACKAGE}, {folder}",
        terms=TERMS,
        notes=(
            f"{len(items):,} stamps with a picture, {sounds:,} of them with a sound of their own",
            f"{left_out:,} stamps are left out: they are drawn as SVG alone",
            "there are no prices",
        ),
    )


def _stamp(description: Path, folder: Path, root: Path) -> dict[str, object]:
    """The row of one stamp: paths relative to `root`, where they are below it."""
    place = description.relative_to(folder)
    first, *others = description.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    by_language = dict(line.split(".utf8=", 1) for line in others if ".utf8=" in line)
    said = (by_language.get(language, "").strip() for language in LANGUAGES)
    sound = next((path for suffix in SOUNDS if (path := description.with_suffix(suffix)).is_file()), None)
    return {
        ITEM: "-".join(place.with_suffix("").parts),
        TITLE: first.strip().removesuffix("."),
        DESCRIPTION: " · ".join(dict.fromkeys(filter(None, said))),
        CATEGORIES: list(place.parent.parts),
        IMAGE: _shown(description.with_suffix(".png"), root),
        AUDIO: None if sound is None else _shown(sound, root),
    }


def _shown(path: Path, root: Path) -> str:
    whole, root = path.resolve(), root.resolve()
    return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)


def _fetched(into: Path) -> Path:
    """The folder of the stamps below `into`; the package is downloaded where it is not there yet."""
    if there := sorted(into.glob(f"{PACKAGE}_*/{STAMPS}")):
        return there[-1]
    if (apt := shutil.which("apt-get")) is None:
        raise SourceError(
            f"source stamps without data.origin fetches {PACKAGE} by apt-get, which this machine lacks: fetch it "
            f"where there is Debian or Ubuntu, and set data.origin to {EXPECTED}"
        )
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as temporary:
        place = Path(temporary).resolve()
        said = _run([apt, "download", PACKAGE], place)
        if not list(place.glob("*.deb")):  # the system has no lists of packages: fetch them, which needs no root here
            own = [f"-oDir::State::lists={place}/lists", f"-oDir::Cache={place}/cache"]
            (place / "lists" / "partial").mkdir(parents=True)
            (place / "cache" / "archives" / "partial").mkdir(parents=True)
            said = "".join(_run([apt, *own, *command], place) for command in (["update"], ["download", PACKAGE]))
        if not (found := list(place.glob("*.deb"))):
            raise SourceError(
                f"apt-get does not get {PACKAGE}: {said.strip() or 'it says nothing'}. Check the network and the "
                f"sources of apt, or set data.origin to {EXPECTED}"
            )
        return _unpack(found[0], into)


def _unpack(package: Path, into: Path) -> Path:
    """Unpack a .deb into a folder of its name below `into`; returns the folder of the stamps."""
    folder = into / package.stem
    if not folder.is_dir():
        if (dpkg := shutil.which("dpkg-deb")) is None:
            raise SourceError(f"{package}: dpkg-deb, which unpacks it, is not here; set data.origin to {EXPECTED}")
        part = (into / f"{package.stem}.part").resolve()
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        said = _run([dpkg, "--extract", str(package), str(part)], part)
        if not (part / STAMPS).is_dir():
            shutil.rmtree(part)
            raise SourceError(f"{package} is not {EXPECTED}: {said.strip() or f'it has no {STAMPS}'}")
        os.replace(part, folder)
    return folder / STAMPS


def _run(command: list[str], place: Path) -> str:
    """What a command says on stderr."""
    return subprocess.run(command, cwd=place, capture_output=True, text=True, errors="replace").stderr
