"""The data contract: tables read, checked row by row, and reported."""
