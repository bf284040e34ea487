"""The texts of Complete Journey's products: every abbreviation; title, description and categories."""

import polars as pl
import pytest

from features.tables.sources.complete_journey import _texts


def texts(**columns: str | None) -> dict[str, object]:
    """Title, description and categories of one product."""
    kinds = ("product_type", "product_category", "department", "brand", "package_size")
    frame = pl.DataFrame({kind: [columns.get(kind)] for kind in kinds}, schema=dict.fromkeys(kinds, pl.String))
    return frame.select(_texts()).row(0, named=True)


@pytest.mark.parametrize(
    ("written", "readable"),
    [
        ("FRZN FRUIT - BAGGED FD", "Frozen fruit, bagged food"),
        ("REFRGRATD DRNK", "Refrigerated drink"),
        ("PCKGD PKGD PKG VEG", "Packaged packaged packaged vegetable"),
        ("FD:CATFD&DOGFD", "Food: cat food & dog food"),
        ("DRNKING SPLYS", "Drinking supplies"),
        ("SPLY SUPPPPLIES SUPPPLIES", "Supplies supplies supplies"),
        ("BKD GDS:BG SW", "Baked goods: bag sweet"),
        ("GDS  MISC MISC.", "Goods miscellaneous miscellaneous"),
        ("CLEANG TRANS", "Cleaning transport"),
        ("FEM. HYGN ACCESS.", "Feminine hygiene accessories"),
        ("CRBNTD NON-CRBNTD PROD", "Carbonated non-carbonated products"),
        ("GM", "General merchandise"),
        ("MEAT-PCKGD", "Packaged meat"),
        ("SEAFOOD-PCKGD", "Packaged seafood"),
    ],
)
def test_abbreviations(written: str, readable: str) -> None:
    title = texts(product_type=written)["title"]
    assert str(title).lower() == readable.lower()
    assert str(title)[0] == readable[0]


def test_the_texts_of_a_product() -> None:
    product = {"product_type": "FRUIT", "product_category": "FRZN FRUIT", "department": "GROCERY", "brand": "Private"}
    assert texts(**product, package_size="16 OZ") == {
        "title": "Fruit, 16 oz, store brand",
        "description": "Frozen fruit. Grocery department. Private brand",
        "categories": ["Grocery", "Frozen fruit"],
    }


def test_fields_that_a_product_lacks() -> None:
    assert texts(department="GROCERY", brand="National") == {
        "title": "Grocery",
        "description": "Grocery department. National brand",
        "categories": ["Grocery"],
    }
    assert texts(product_category="FRZN FRUIT")["title"] == "Frozen fruit"
