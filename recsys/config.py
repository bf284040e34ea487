"""Settings of what is learned, apart from the libraries that learn: commands that train nothing start at once."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from features.schema import Strict


class TowerConfig(Strict):
    """Shape of the two towers."""

    dimension: Annotated[int, Field(ge=8, multiple_of=4)] = 64
    """Length of every vector."""

    nested: tuple[int, ...] = ()
    """Shorter dimensions that the loss covers too. Vectors may be cut without them as well (`TwoTowers.rotate`)."""

    layers: Annotated[int, Field(ge=1)] = 2
    """Transformer layers of the user tower."""

    heads: Annotated[int, Field(ge=1)] = 2
    """Attention heads; they divide the dimension."""

    history: Annotated[int, Field(ge=1)] = 100
    """Newest events of a user that are read."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout in the user tower, also on its input."""

    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of items of which a training step hides id and popularity, so that content is learned from too."""

    id: bool = True
    """Whether items have embeddings of their own, beside contents and popularity."""

    content: bool = True
    """Whether contents, categories and numbers are used beside the id."""

    times: bool = True
    """Whether the time to the next event, or to the request, is read."""

    calendar: bool = False
    """Whether the hour (UTC) and the weekday of the next event, or of the request, are read: where people want other
    things in the evening, or on Sundays."""

    newcomers: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the first places that items without events are lifted to; 0: they stand where the tower puts them."""

    @model_validator(mode="after")
    def _narrower(self) -> "TowerConfig":
        if self.dimension % self.heads:
            raise ValueError(f"heads {self.heads}: they must divide the dimension {self.dimension}")
        if any(not 1 <= m < self.dimension for m in self.nested):
            raise ValueError(f"nested {list(self.nested)}: dimensions below {self.dimension} are needed")
        return self


class RetrieverConfig(Strict):
    """How candidates are found: docs/scale.md says which kind suits which number of items."""

    kind: Literal["exact", "hnsw", "ivf-flat", "ivf-pq", "gpu-exact", "gpu-ivf-pq"] = "exact"
    """exact: every item is compared; hnsw: a graph; ivf-flat: lists of neighbours; ivf-pq: such lists of compressed
    vectors; gpu-: on a GPU where there is one, else as without it."""

    effort: Annotated[int, Field(ge=1)] | None = None
    """How much is looked at: candidates of a graph (512), lists (64, or a 64th). More finds more, but slower."""

    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Search the first so many dimensions, those that users vary most in, then compare in full."""

    refine: Annotated[int, Field(ge=1)] = 10
    """Items compared in full for each that is asked for, where cut or compressed vectors were searched."""


class TrainingConfig(Strict):
    """How the towers are fitted."""

    epochs: Annotated[int, Field(ge=1)] = 50
    """At most this many passes over the events."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Validations without a better NDCG@10 before stopping."""

    validation_states: Annotated[int, Field(ge=1)] = 5000
    """At most this many states of the validation window are ranked after each pass, drawn by the seed."""

    batch_events: Annotated[int, Field(ge=1)] = 8192
    """History events in a step."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW, after a warm-up over the first epoch."""

    id_rate: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the item ids, as a multiple: below 1 they stay near where the behaviour's SVD puts them."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate after the warm-up. The average of weights stands for a fall; cosine falls to zero over
    `epochs`."""

    loss: Literal["softmax", "in-batch", "gbce"] = "softmax"
    """softmax and gbce: against `negatives`; in-batch: softmax against the step's other targets, `negatives` are not
    read (`recsys.towers.losses`)."""

    negatives: Annotated[int, Field(ge=0)] = 0
    """0: against the full catalogue; else against this many uniformly drawn items, shared by a step."""


class RerankerConfig(Strict):
    """LambdaMART over the candidates of the towers."""

    candidates: Annotated[int, Field(ge=10)] = 500
    """Items that retrieval hands over."""

    trees: Annotated[int, Field(ge=1)] = 100
    leaves: Annotated[int, Field(ge=2)] = 7
    learning_rate: Annotated[float, Field(gt=0)] = 0.03
    groups: Annotated[int, Field(ge=1)] = 5000
    """At most this many states of the validation window are trained on, drawn by the seed."""


class AlignmentConfig(Strict):
    """How the shared space is learned."""

    nested: tuple[int, ...] = (32, 64, 128, 256)
    """Dimensions that vectors may be cut to, in ascending order; the last is the whole."""

    shrinkage: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Tried for each space on items held out, in units of its mean variance."""

    power: tuple[float, ...] = (0.5, 1.0)
    """Tried likewise: how much directions that agree more weigh more."""

    within: tuple[float, ...] = (0.3, 1.0)
    """Tried likewise: weight of agreement within a space against that between spaces."""

    steps: Annotated[int, Field(ge=0)] = 40
    """Of each stage, or as many as make `passes`, whichever is more; 0: the closed form."""

    passes: Annotated[int, Field(ge=0)] = 4
    """Least number of times that a stage sees each item."""

    batch: Annotated[int, Field(ge=2)] = 1024
    """Items in a step, each other's negatives."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Of AdamW, falling to zero by a cosine in each stage."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an encoder's coordinates hidden in a step."""

    @model_validator(mode="after")
    def _ascending(self) -> "AlignmentConfig":
        if not self.nested or list(self.nested) != sorted(set(self.nested)) or self.nested[0] < 1:
            raise ValueError(f"nested {list(self.nested)}: ascending dimensions are needed")
        return self
