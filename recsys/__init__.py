"""Learning and ranking on arrays: towers, index, reranker, slate, metrics, baselines, the bundle."""
