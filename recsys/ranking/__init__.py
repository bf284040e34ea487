"""Ranking: features of (user, item) pairs, the reranker, the slate."""
