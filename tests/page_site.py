"""A toy service and a page of it in a real browser, whose errors fail the test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from service_harness import Flaky, serving
from toy_service import (
    COLOURS,
    GREEN,
    RULES,
    ToyBundle,
    ToyEyes,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_encoders,
    toy_settings,
    toy_upsert,
    with_contents,
)

from features.arrays import Floats
from features.content.encoders.sounds import prepare as prepare_sound
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits
from features.content.spaces import Embedded, Encoder, Task
from features.progress import Step
from recsys.bundle.item_map import ItemMap
from serving.app import create_app


class ToyEars(ToyEyes):
    """Audio encoder: every sound is green."""

    modalities = frozenset({"audio"})

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        return self.media.embed(contents, self.modalities, prepare_sound, self.hear, self.key, batch=8)

    def hear(self, waves: list[Any]) -> Floats:
        return np.tile(GREEN, (len(waves), 1))


def hearing_encoders(config: object, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    return toy_encoders(config, decoders, limits, models) | {"sound": ToyEars(decoders, limits)}


def with_sounds(bundle: ToyBundle) -> ToyBundle:
    """The bundle with a channel of sounds, which no item has."""
    space = bundle.content
    assert space is not None
    n = len(bundle.catalog)
    sounds = Embedded(COLOURS, np.zeros((n, 3), np.float32), np.zeros(n, np.bool_))
    return replace(bundle, content=replace(space, channels={**space.channels, "sound": sounds}))


@contextmanager
def toy_site(
    folder: Path, images: dict[int, str] | None = None, *, sounds: bool = False, **settings: Any
) -> Iterator[tuple[str, Flaky]]:
    """URL of a service of 40 items on a free port, and its store. Item r stands on the map at (r / 40, r / 80).

    sounds: whether it can be searched by sounds, too.
    """
    places = (np.arange(40)[:, None] / np.array([40, 80])).astype(np.float32)  # (40, 2)
    bundle = replace(
        with_contents(toy_bundle(folder, 40, images=images or {2: "absent.png"})), item_map=ItemMap(places, "PCA")
    )
    bundle = with_sounds(bundle) if sounds else bundle
    shelf, store = ToyShelf(bundle), Flaky(RULES)
    app = create_app(
        toy_settings(folder, follow_seconds=0.05, **settings),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(folder),
        connect=lambda _: store,
        encoders=hearing_encoders if sounds else toy_encoders,
    )
    with serving(app) as url:
        yield url, store


@contextmanager
def watched_page(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page, on a phone by default. Fails on an error in the console and on a request to another host."""
    context = browser.new_context(**{"viewport": {"width": 390, "height": 800}} | options)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    allowed = (url, f"blob:{url}")
    opened.on("request", lambda request: errors.append(request.url) if not request.url.startswith(allowed) else None)
    opened.on(
        "console",
        lambda log: errors.append(log.text) if log.type == "error" and "/media/" not in log.location["url"] else None,
    )
    yield opened
    context.close()
    assert errors == []
