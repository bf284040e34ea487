"""Source `stamps`: what becomes of the files of the package, and how the package is fetched and unpacked."""

import json
import os
import sys
from pathlib import Path

import polars as pl
import pytest
from stamp_package import NAME, STAMPS, deb

from features.errors import SourceError
from features.schema import DataConfig, EventRules
from features.tables.read import read_tables
from features.tables.sources import extract, get

FILES = {
    "animals/birds/crow.png": b"p",
    "animals/birds/crow.txt": "A crow.\nde.utf8=Eine Krähe.\nnl.utf8=Een kraai.\nfr.utf8=Un corbeau.\n".encode(),
    "animals/birds/crow.ogg": b"s",
    "animals/birds/crow_desc.ogg": b"a voice",
    "animals/birds/crow_desc_fr.ogg": b"une voix",
    "animals/birds/crow.dat": b"noflip\n",
    "tools/saw.png": b"p",
    "tools/saw.svg": b"<svg/>",
    "tools/saw.txt": "A saw…\nfr.utf8=Une scie\nes.utf8=Une scie\n".encode(),
    "tools/saw.wav": b"s",
    "tools/saw_mirror.png": b"p",
    "flags/red.svg": b"<svg/>",
    "flags/red.txt": b"A red flag.\n",
    "plain.png": b"p",
    "plain.txt": b"",
}
BELOW = {f"{STAMPS}/{name}": data for name, data in FILES.items()} | {"usr/share/doc/copyright": b"GPL-2"}

APT = """#!{python}
import os, shutil, sys
with open({said!r}, "a") as file:
    print(*sys.argv[1:], file=file)
lists = [word.partition("=")[2] for word in sys.argv if word.startswith("-oDir::State::lists=")]
if {needs_lists} and not lists:
    sys.exit("E: Unable to locate package")
if sys.argv[-1] == "update":
    open(os.path.join(lists[0], "a list"), "w").close()
elif not lists or os.path.exists(os.path.join(lists[0], "a list")):
    shutil.copy({package!r}, ".")
"""


def config(path: Path, origin: object = None) -> DataConfig:
    rules = EventRules(positive={"click": None})
    return DataConfig(source="stamps", path=str(path), origin=None if origin is None else str(origin), events=rules)


def one_click(items: pl.DataFrame) -> pl.DataFrame:
    return items.head(1).select("item_id", user_id=pl.lit("simulated-0001"), event=pl.lit("click"), timestamp=10**9)


def path_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **programs: str) -> None:
    """PATH has these programs, and dpkg-deb, alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name.replace("_", "-")).write_text(text)
        (folder / name.replace("_", "-")).chmod(0o755)
    tools = [place for place in ("/usr/bin/dpkg-deb", "/usr/bin/tar", "/bin/tar") if os.path.exists(place)]
    for tool in tools:
        if not (folder / Path(tool).name).exists():
            (folder / Path(tool).name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(folder))


def test_stamps_of_a_package(tmp_path: Path) -> None:
    request = config(tmp_path / "out", deb(tmp_path / f"{NAME}.deb", BELOW))
    get(request, simulate=one_click)
    tables = read_tables(request)
    assert tables.report.problems == ()
    items = tables.items.select("item_id", "title", "description", "categories", "image", "audio").rows()
    place = f"{NAME}/{STAMPS}"
    birds = f"{place}/animals/birds"
    assert items == [
        (
            "animals-birds-crow",
            "A crow",
            "Eine Krähe. · Un corbeau.",
            ["animals", "birds"],
            f"{birds}/crow.png",
            f"{birds}/crow.ogg",
        ),
        ("plain", None, None, [], f"{place}/plain.png", None),
        ("tools-saw", "A saw…", "Une scie", ["tools"], f"{place}/tools/saw.png", f"{place}/tools/saw.wav"),
    ]
    assert tables.events.get_column("user_id").to_list() == ["simulated-0001"]
    assert (tmp_path / "out" / NAME / "usr/share/doc/copyright").read_bytes() == b"GPL-2"
    manifest = json.loads((tmp_path / "out" / "source.json").read_text())
    assert manifest["notes"] == [
        "3 stamps with a picture, 2 of them with a sound of their own",
        "1 stamps are left out: they are drawn as SVG alone",
        "there are no prices",
    ]
    assert "GPL-2" in manifest["terms"]
    assert manifest["simulated"] is True


def test_stamps_of_a_folder_are_read_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    get(config(tmp_path / "out", folder), simulate=one_click)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.get_column("image").to_list()[0] == str(folder / "animals/birds/crow.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"items.parquet", "events.parquet", "source.json"}


def test_events_are_simulated_until_others_take_their_place(tmp_path: Path) -> None:
    assert not extract.is_simulated(tmp_path / "out")
    request = config(tmp_path / "out", deb(tmp_path / f"{NAME}.deb", BELOW))
    with pytest.raises(SourceError, match=r"'stamps' has no events; `recsys data get` simulates them"):
        get(request)
    get(request, simulate=one_click)
    assert extract.is_simulated(tmp_path / "out")
    one_click(pl.DataFrame({"item_id": ["plain"]})).write_parquet(tmp_path / "out" / "events.parquet")
    assert not extract.is_simulated(tmp_path / "out")
    (tmp_path / "out" / "source.json").write_text("[]")
    assert not extract.is_simulated(tmp_path / "out")


@pytest.mark.parametrize("needs_lists", [False, True])
def test_the_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_lists: bool) -> None:
    said, package = tmp_path / "said", deb(tmp_path / f"{NAME}.deb", BELOW)
    apt = APT.format(python=sys.executable, said=str(said), package=str(package), needs_lists=needs_lists)
    path_of(monkeypatch, tmp_path, apt_get=apt)
    get(config(tmp_path / "out"), simulate=one_click)
    asked = [line.split()[-1] for line in said.read_text().splitlines()]
    once = ["tuxpaint-stamps-default"]
    assert asked == (once if not needs_lists else [*once, "update", *once])
    assert pl.read_parquet(tmp_path / "out" / "items.parquet").height == 3
    left = {"items.parquet", "events.parquet", "source.json", NAME}
    assert {path.name for path in (tmp_path / "out").iterdir()} == left
    get(config(tmp_path / "out"), force=True, simulate=one_click)
    assert len(said.read_text().splitlines()) == len(asked)


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({}, r"by apt-get, which this machine lacks: .* set data.origin to the package .* as a .deb file"),
        ({"apt_get": "#!/bin/sh\necho E: no network >&2\nexit 100\n"}, r"apt-get does not get .*: E: no network"),
        ({"apt_get": "#!/bin/sh\n"}, r"apt-get does not get .*: it says nothing\. Check the network"),
        (
            {"apt_get": f"#!/bin/sh\necho rubbish > {NAME}.deb\n"},
            rf"{NAME}.deb is not the package .* as a .deb file, .*: dpkg-deb: error",
        ),
    ],
)
def test_a_package_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], message: str
) -> None:
    path_of(monkeypatch, tmp_path, **programs)
    with pytest.raises(SourceError, match=message):
        get(config(tmp_path / "out"), simulate=one_click)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_another_package_and_a_folder_without_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = deb(tmp_path / "other.deb", {"usr/share/doc/copyright": b"GPL-2"})
    with pytest.raises(SourceError, match=rf"other.deb is not the package .*: it has no {STAMPS}"):
        get(config(tmp_path / "out", other), simulate=one_click)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: no stamp \(NAME.png with NAME.txt\) is in it"):
        get(config(tmp_path / "out", tmp_path / "empty"), simulate=one_click)
    path_of(monkeypatch, tmp_path)
    (tmp_path / "bin" / "dpkg-deb").unlink()
    with pytest.raises(SourceError, match=r"other.deb: dpkg-deb, which unpacks it, is not here"):
        get(config(tmp_path / "out", other), simulate=one_click)
