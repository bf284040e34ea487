"""Reading the tables of the data contract: validated row by row, with a report."""

from features.tables.read import (
    Tables,
    check_item_puts,
    check_tables,
    event_weights,
    read_items,
    read_tables,
)

__all__ = ["Tables", "check_item_puts", "check_tables", "event_weights", "read_items", "read_tables"]
