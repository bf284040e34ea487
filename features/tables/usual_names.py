"""Other names of the columns of the data contract: which column of a file is probably meant."""

import difflib
import re
from collections.abc import Sequence

from features import schema

USUAL_NAMES = {
    schema.ITEM: "item iid itemno movieid movie asin parentasin sku productid product article articleid contentid "
    "objectid bookid trackid songid artistid videoid newsid",
    schema.USER: "user uid userno customerid customer visitorid visitor reviewerid memberid accountid clientid",
    schema.EVENT: "eventtype eventname type action behavior behaviour behaviortype interaction",
    schema.TIME: "ts time date datetime createdat created eventtime occurredat unixtime unixreviewtime timestampms",
}
"""Column of the contract -> names that public data sets use for it, in small letters and digits."""


def column_meant(missing: str, table: str, columns: Sequence[str]) -> str | None:
    """The column that probably has another name in the contract: a usual name of it, else a similar one.

    Columns that have a name of the contract are not suggested: they are what they say. table: items, events or users.
    """
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in columns if name not in schema.CONTRACT}
    own_id = ["id"] if missing == f"{table.removesuffix('s')}_id" else []  # `id` in events numbers the events
    usual = [missing.replace("_", ""), *own_id, *USUAL_NAMES.get(missing, "").split()]
    if found := next((plain[name] for name in usual if name in plain), None):
        return found
    similar = difflib.get_close_matches(missing.replace("_", ""), plain, n=1, cutoff=0.75)
    return plain[similar[0]] if similar else None
