"""Settings of the models. Imports no machine-learning library, so that commands that do not train start fast."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from features.schema import PlacementName, StrictModel


class TowerConfig(StrictModel):
    """Architecture of the two towers."""

    dimension: Annotated[int, Field(ge=8, multiple_of=4, le=16_384)] = 64
    """Dimension of item and user vectors."""

    nested: tuple[Annotated[int, Field(le=16_384)], ...] = ()
    """Shorter dimensions that the loss covers too (Matryoshka). Vectors can also be cut without them:
    `TwoTowers.rotate`."""

    layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Transformer layers of the user tower."""

    heads: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Attention heads of the user tower; must divide the dimension."""

    history: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of a user's newest events that the user tower reads."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout rate in the user tower, also on its input."""

    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of items whose id and popularity are hidden in a training step, so that the tower also learns from
    content."""

    id: bool = True
    """Whether items have id embeddings, besides content and popularity."""

    content: bool = True
    """Whether the item tower reads content vectors, categories and numbers, besides the id."""

    times: bool = True
    """Whether the user tower reads the time from each event to the next event or the request."""

    calendar: bool = False
    """Whether the user tower reads the hour (UTC) and the weekday of the next event or the request: useful where
    demand depends on them."""

    cold_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, validation_alias=AliasChoices("cold_share", "newcomers")
    )
    """Maximum share of the first ten places that retrieval lifts cold items to, whatever it costs. null: as far as
    `discovery` allows, and not at all where a reranker follows, which has a lift of its own. Version 0.1 called it
    newcomers, which is still read."""

    @model_validator(mode="after")
    def _narrower(self) -> "TowerConfig":
        if self.dimension % self.heads:
            raise ValueError(f"heads {self.heads}: the number of heads must divide the dimension {self.dimension}")
        if any(not 1 <= m < self.dimension for m in self.nested):
            raise ValueError(f"nested {list(self.nested)}: dimensions below {self.dimension} are needed")
        return self


class RetrieverConfig(StrictModel):
    """The retrieval index. docs/scale.md says which kind suits which number of items."""

    kind: Literal["exact", "hnsw", "ivf-flat", "ivf-pq", "gpu-exact", "gpu-ivf-pq"] = "exact"
    """exact: compares every item; hnsw: a graph; ivf-flat: inverted lists; ivf-pq: inverted lists of compressed
    vectors; gpu-: the same on a GPU if there is one, else on the CPU."""

    effort: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Search effort: candidates of the graph (default 512) or lists (default 64, or a 64th). More effort raises
    recall and latency."""

    dimensions: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Search in this many first dimensions, in which users vary most, then compare the results in all dimensions."""

    refine: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Items compared in all dimensions for each requested item, if cut or compressed vectors were searched."""


class TrainingConfig(StrictModel):
    """Training of the towers."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Maximum number of epochs."""

    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 3
    """Training stops after this many epochs without a better validation NDCG@10."""

    validation_states: Annotated[int, Field(ge=1, le=1_000_000_000)] = 5000
    """Maximum number of states of the validation window that are ranked after each epoch; the seed draws them."""

    batch_events: Annotated[int, Field(ge=1, le=1_000_000_000)] = 8192
    """History events in a training step, padding included."""

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    """Learning rate of AdamW after a linear warm-up over the first epoch."""

    id_rate: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Factor of the learning rate of id embeddings. Below 1 they stay closer to their initial vectors, an SVD of the
    events."""

    weight_decay: Annotated[float, Field(ge=0, le=1_000)] = 0.01
    """Weight decay of AdamW."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up. constant: the averaging of the weights replaces a decay; cosine: decays to
    zero over `epochs`."""

    loss: Literal["softmax", "in-batch", "gbce"] = "softmax"
    """softmax, gbce: against `negatives`; in-batch: softmax against the other targets of the step, without
    `negatives`. See `recsys.towers.losses`."""

    negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """0: all items are negatives; else this many uniformly drawn items, the same for all pairs of a step."""


Share = Annotated[float, Field(ge=0, le=1)]


class SourceQuotas(StrictModel):
    """The share of the candidates that each source brings, relative to the sum of all shares.

    The user's own items come before, and take at most half of the candidates. 0: the source is not asked.
    """

    recent: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Items near the user vector, which predicts the next event. They also take the places that others leave."""

    long_term: Share = 0.3
    """Items near the mean of all positive items of the user."""

    neighbours: Share = 0
    """Items that users of the history's items chose, too, by local EASE^R."""

    fresh: Share = 0
    """Items near the user vector that were published in the 30 days before the latest event of the training, or
    later; where the date is not known, items without a positive event."""

    trending: Share = 0
    """Items with the most positive events in the 7 days before the latest event of the training."""

    popular: Share = 0
    """Items with the most positive events in 30 days: what cold users get."""

    def limits(self, k: int) -> dict[str, int]:
        """The number of items among k candidates that each source may bring."""
        shares = self.model_dump()
        total = sum(shares.values())
        return {name: int(share / total * k) for name, share in shares.items()}


class RerankerConfig(StrictModel):
    """The reranker: LambdaMART over the candidates of retrieval."""

    candidates: Annotated[int, Field(ge=10, le=1_000_000)] = 500
    """Number of candidates that retrieval passes to the reranker."""

    sources: SourceQuotas = SourceQuotas()
    """Where candidates come from."""

    trees: Annotated[int, Field(ge=1, le=100_000)] = 100
    leaves: Annotated[int, Field(ge=2, le=131072)] = 7
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.03
    groups: Annotated[int, Field(ge=1, le=1_000_000_000)] = 5000
    """Maximum number of states of the validation window that the reranker is trained on; the seed draws them."""

    objectives: dict[PlacementName, dict[str, Annotated[float, Field(gt=0, le=1e6)]]] = Field(default={})
    """Placement -> event type -> what it is worth that an event of this type follows an exposure there, relative to
    the others; `{}` for a placement: its exposures are not learned from. A placement that is not named: each positive
    type is worth its weight in `data.events.weights`, or 1. Without explored positions in the log, this is not
    used."""

    cold_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Maximum share of the first ten places that cold items, those without a positive event, are lifted to by a
    number added to their scores; 0: they are not lifted. null: as far as it costs at most 1 % of NDCG@10 on the
    validation window, and no further than their share of its events. They are never lifted beyond the point where
    they are found as often as other items."""


class AlignmentConfig(StrictModel):
    """Alignment of the content vectors in a shared space."""

    nested: tuple[Annotated[int, Field(le=16_384)], ...] = (32, 64, 128, 256)
    """Dimensions that vectors can be cut to, in ascending order; the last is the full dimension."""

    shrinkage: tuple[Annotated[float, Field(ge=0, le=1_000_000)], ...] = (1.0, 3.0, 10.0, 30.0)
    """Candidate values of the shrinkage of each space, in units of its mean variance; held-out items decide."""

    power: tuple[Annotated[float, Field(ge=-100, le=100)], ...] = (0.5, 1.0)
    """Candidate exponents p: a direction is scaled by its agreement between spaces ** p; held-out items decide."""

    within: tuple[Annotated[float, Field(ge=0, le=1_000_000)], ...] = (0.3, 1.0)
    """Candidate weights of agreement within a space, relative to agreement between spaces; held-out items decide."""

    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 40
    """Minimum number of steps of each stage (see `passes`); 0: only the closed form."""

    passes: Annotated[int, Field(ge=0, le=1_000_000)] = 4
    """Minimum number of times that each stage sees each item."""

    batch: Annotated[int, Field(ge=2, le=1_000_000)] = 1024
    """Items in a step. Each is a negative of the others."""

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 3e-4
    """Initial learning rate of AdamW; decays to zero by a cosine in each stage."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout rate of the coordinates of an encoder's vector in a step."""

    @model_validator(mode="after")
    def _ascending(self) -> "AlignmentConfig":
        if not self.nested or list(self.nested) != sorted(set(self.nested)) or self.nested[0] < 1:
            raise ValueError(f"nested {list(self.nested)}: ascending dimensions are needed, from 1 on")
        return self
