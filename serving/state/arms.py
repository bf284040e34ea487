"""What one request is answered from: the snapshot of a bundle, rules, and the variants of experiments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from recsys.assignment import NO_VARIANT, variant_text
from recsys.retrieval.filters import Filter
from serving.shop.rules import ShopRules
from serving.state.snapshot import ServingSnapshot

MISSED = "variant"
"""Value of `degraded` where the variant of a user cannot be served."""


@dataclass(frozen=True)
class Arm:
    """What one request is answered from. variants: experiment -> variant, of those in force; failed: components that
    cannot be served (values of `degraded`)."""

    snapshot: ServingSnapshot
    rules: ShopRules
    variants: Mapping[str, str]
    failed: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """How the answer and its exposure name the variants."""
        return variant_text(self.variants) if self.variants else NO_VARIANT

    def with_filter(self, item_filter: Filter) -> "Arm":
        """Restricted by the filter of the request. Raises DataError when the filter does not apply."""
        return replace(self, snapshot=self.snapshot.with_filter(item_filter))
