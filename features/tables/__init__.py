"""The data contract: tables read, checked row by row, and reported."""

from features.tables.read import Tables, check_puts, check_tables, label, read_items, read_tables, weigh

__all__ = ["Tables", "check_puts", "check_tables", "label", "read_items", "read_tables", "weigh"]
