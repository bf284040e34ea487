"""Retrieval across kinds of content on items that were held out: words, pictures and sounds."""
