"""Models and ranking on arrays: towers, index, reranker, slate, metrics, baselines, bundle."""
