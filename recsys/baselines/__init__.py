"""Baselines behind the `Recommender` Protocol: each `fit_*` takes Interactions and returns a frozen fitted object."""

from recsys.baselines.als import fit_als
from recsys.baselines.content import fit_bridge, fit_tfidf
from recsys.baselines.ease import fit_ease
from recsys.baselines.frequency import fit_frequency
from recsys.baselines.neighbours import fit_item_knn
from recsys.baselines.popular import fit_popular

__all__ = ["fit_als", "fit_bridge", "fit_ease", "fit_frequency", "fit_item_knn", "fit_popular", "fit_tfidf"]
