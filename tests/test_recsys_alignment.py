"""The alignment: it recovers shared factors, leaves out what is missing, and never mixes spaces."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA

from features.content.spaces import Embedded, Failure, SpaceKey, cut, unit
from features.errors import DataError, SpaceError
from recsys.config import AlignmentConfig
from recsys.content.alignment import AffineMap, Alignment, Views, fuse
from recsys.content.alignment_training import (
    MAX_TUNING_ITEMS,
    MIN_PAIRED_ITEMS,
    _Trainer,
    cross_channel_mrr,
    fit_alignment,
)
from recsys.content.cca import fit_cca, spectra

TEXT, IMAGE, SOUND = (SpaceKey(name, "1", d) for name, d in (("text", 40), ("image", 60), ("sound", 30)))
FACTORS = 8
N, HELD = 300, 100
CLOSED = AlignmentConfig(nested=(4, 8, 16), steps=0, shrinkage=(1.0, 3.0), power=(0.5,), within=(0.3,))
TRAINED = CLOSED.model_copy(update={"nested": (4, 16), "steps": 20, "passes": 1, "batch": 64, "shrinkage": (3.0,)})


def simulate(n, seed, noise=0.3):
    """Unit rows of n items in each space: shared factors times a matrix, the same for all seeds, plus noise."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    mixes = {key: fixed.standard_normal((FACTORS, key.dimension)) for key in (TEXT, IMAGE, SOUND)}
    z = rng.standard_normal((n, FACTORS))
    signal = {key: z @ mix for key, mix in mixes.items()}
    return {
        key: unit((x + noise * FACTORS**0.5 * rng.standard_normal(x.shape) + 2.0).astype(np.float32))
        for key, x in signal.items()
    }


KNOWN, NEW = simulate(N, seed=1), simulate(HELD, seed=2)


def views(key, items=None, source=None):
    vectors = (KNOWN if source is None else source)[key]
    items = np.arange(len(vectors)) if items is None else np.asarray(items, dtype=np.int64)
    return Views(key, items, vectors[items])


def embedded(key, vectors, present=None):
    vectors = np.asarray(vectors, dtype=np.float32)
    return Embedded(key, vectors, vectors.any(1) if present is None else np.array(present))


THREE = {"text": views(TEXT), "image": views(IMAGE), "sound": views(SOUND)}
UNSEEN = {"text": views(TEXT, source=NEW), "image": views(IMAGE, source=NEW), "sound": views(SOUND, source=NEW)}


@pytest.fixture(scope="module")
def closed():
    return fit_alignment(THREE, N, CLOSED, seed=0).alignment


@pytest.fixture(scope="module")
def trained():
    return fit_alignment(THREE, N, TRAINED, seed=0)


def noise_maps(seed=0):
    rng = np.random.default_rng(seed)
    maps = {
        key: AffineMap(*(rng.standard_normal(shape).astype(np.float32) for shape in ((d,), (d, 16))))
        for key, d in ((k, k.dimension) for k in (TEXT, IMAGE, SOUND))
    }
    return Alignment(maps, (4, 16))


# what the maps learn


def test_held_out_items_are_found_from_any_space(closed, trained):
    assert cross_channel_mrr(noise_maps(), UNSEEN, HELD) < 0.15  # chance is .05
    assert cross_channel_mrr(closed, UNSEEN, HELD) > 0.95
    assert cross_channel_mrr(trained.alignment, UNSEEN, HELD) > 0.95
    shuffled = {**UNSEEN, "image": replace(UNSEEN["image"], items=np.random.default_rng(0).permutation(HELD))}
    assert cross_channel_mrr(closed, shuffled, HELD) < 0.5  # a control: with shuffled items the MRR is low


def test_the_closed_form_is_canonical_correlation():
    """Without shrinkage: against scikit-learn, and against the generalised eigenvalue problem of textbooks."""
    known = spectra({"text": views(TEXT), "sound": views(SOUND)}, N)
    rank = 5
    alignment = fit_cca(known, {TEXT: 0.0, SOUND: 0.0}, 0.0, 0.3, (rank,))
    x, y = (KNOWN[key].astype(np.float64) - KNOWN[key].mean(0, dtype=np.float64) for key in (TEXT, SOUND))
    between = np.zeros((70, 70))
    between[:40, 40:] = x.T @ y
    within = scipy.linalg.block_diag(x.T @ x, y.T @ y)
    values, directions = scipy.linalg.eigh(between + between.T, within)
    oracle = directions[:, ::-1][:, :rank]
    cca = CCA(rank, scale=False, max_iter=5000, tol=1e-12).fit(x, y)
    for key, textbook, sklearn in ((TEXT, oracle[:40], cca.x_rotations_), (SOUND, oracle[40:], cca.y_rotations_)):
        weight = alignment.maps[key].weight
        np.testing.assert_allclose(alignment.maps[key].mean, KNOWN[key].mean(0), atol=1e-6)
        for expected in (textbook, sklearn):
            cosines = (unit(weight.T) * unit(expected.T)).sum(1)
            np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-3)
        scores = (KNOWN[key] - alignment.maps[key].mean) @ weight
        np.testing.assert_allclose((scores**2).sum(1).mean(), 1, atol=1e-3)  # mean squared length 1
        np.testing.assert_allclose(np.cov(scores.T), np.eye(rank) / rank, atol=2e-3)  # whitened
    a, b = ((KNOWN[key] - alignment.maps[key].mean) @ alignment.maps[key].weight for key in (TEXT, SOUND))
    correlations = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(rank)]
    np.testing.assert_allclose(correlations, values[::-1][:rank], atol=1e-3)


def test_directions_are_scaled_by_their_agreement_to_the_power():
    known = spectra({"text": views(TEXT), "sound": views(SOUND)}, N)
    plain, scaled = (fit_cca(known, {TEXT: 0.0, SOUND: 0.0}, power, 0.7, (5,)) for power in (0.0, 1.0))
    scales = np.linalg.norm(scaled.maps[TEXT].weight, axis=0) / np.linalg.norm(plain.maps[TEXT].weight, axis=0)
    a, b = ((KNOWN[key] - plain.maps[key].mean) @ plain.maps[key].weight for key in (TEXT, SOUND))
    agreement = (
        np.array([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(5)]) + 0.7
    )  # plus the weight `within` of each view with itself
    np.testing.assert_allclose(scales / scales[0], agreement / agreement[0], atol=1e-3)


def test_views_of_one_space_agree_in_closed_form():
    """Two views of each item: against the eigenvalue problem of their cross-covariance and total covariance."""
    x = KNOWN[TEXT].astype(np.float64)
    y = unit(x + 0.1 * np.random.default_rng(3).standard_normal(x.shape))
    known = spectra({"text": views(TEXT), "speech": Views(TEXT, np.arange(N), y)}, N)
    weight = fit_cca(known, {TEXT: 0.0}, 1.0, 0.3, (5,)).maps[TEXT].weight
    mean = (x.mean(0) + y.mean(0)) / 2
    x, y = x - mean, y - mean
    values, directions = scipy.linalg.eigh(x.T @ y + y.T @ x, x.T @ x + y.T @ y)
    cosines = (unit(weight.T) * unit(directions[:, ::-1][:, :5].T)).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-3)
    spread = np.concatenate([x @ weight, y @ weight]).std(0)  # each direction is scaled by the agreement of the views
    np.testing.assert_allclose(spread / spread[0], (values / values[-1])[::-1][:5], atol=1e-3)


def test_shrinkage_is_selected_for_each_space_from_the_grid():
    config = AlignmentConfig(nested=(8,), steps=0, shrinkage=(0.5, 2.0), power=(1.0,), within=(0.1,))
    fitted = fit_alignment(THREE, N, config, seed=0)
    assert set(fitted.chosen.shrinkage) == {TEXT, IMAGE, SOUND}
    assert set(fitted.chosen.shrinkage.values()) <= {0.5, 2.0}
    assert (fitted.chosen.power, fitted.chosen.within) == (1.0, 0.1)
    assert fitted.losses == {}


def test_training_changes_the_weights_and_lowers_the_loss(closed):
    """The reference is training from the same start with a learning rate of almost zero."""
    config = TRAINED.model_copy(update={"nested": (16,), "steps": 40, "learning_rate": 3e-3, "dropout": 0.0})
    reference = fit_alignment(THREE, N, config.model_copy(update={"learning_rate": 1e-9}), seed=0)
    fitted = fit_alignment(THREE, N, config, seed=0)
    start = fit_alignment(THREE, N, config.model_copy(update={"steps": 0}), seed=0).alignment
    for key in (TEXT, IMAGE, SOUND):
        assert np.abs(fitted.alignment.maps[key].weight - start.maps[key].weight).max() > 1e-3
        np.testing.assert_allclose(reference.alignment.maps[key].weight, start.maps[key].weight, atol=1e-5)
        np.testing.assert_array_equal(fitted.alignment.maps[key].mean, start.maps[key].mean)
    assert list(fitted.losses) == ["pairs", "halves"]
    assert all(fitted.losses[stage] < reference.losses[stage] - 0.001 for stage in fitted.losses)


def test_the_loss_by_hand():
    """The first step: symmetric cross-entropy of cosines / .07, mean over the nested dimensions."""
    two = {"image": views(IMAGE), "text": Views(TEXT, np.arange(N)[::-1].copy(), KNOWN[TEXT][::-1].copy())}
    config = TRAINED.model_copy(update={"steps": 1, "batch": N, "dropout": 0.0, "nested": (2, 16)})
    fitted = fit_alignment(two, N, config, seed=0)
    start = fit_alignment(two, N, config.model_copy(update={"steps": 0}), seed=0).alignment
    a, b = (start.channel(embedded(key, KNOWN[key])).vectors.astype(np.float64) for key in (IMAGE, TEXT))
    expected = []
    for d in (2, 16):
        x, y = (v[:, :d] / np.linalg.norm(v[:, :d], axis=1, keepdims=True) for v in (a, b))
        logits = x @ y.T / 0.07
        expected += [np.mean(np.log(np.exp(side).sum(1)) - np.diag(side)) for side in (logits, logits.T)]
    assert fitted.losses["pairs"] == pytest.approx(np.mean(expected), abs=0.02)  # the sides are drawn at random
    assert fitted.losses["halves"] == pytest.approx(np.mean(expected), rel=0.05)  # after one small step


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_each_stage_ends_with_the_mean_of_the_weights(closed, steps):
    """With a learning rate of almost zero it is the start, also where the second half is one step longer."""
    config = TRAINED.model_copy(update={"nested": (4, 8, 16), "steps": steps, "learning_rate": 1e-9, "batch": N})
    trainer = _Trainer(closed, THREE, N, config, seed=0)
    assert float(trainer._log_scale.exp().detach()) == pytest.approx(1 / 0.07)
    for stage in ("pairs", "halves"):
        trainer.train(stage, None)
        for key in (TEXT, IMAGE, SOUND):
            np.testing.assert_allclose(trainer.alignment().maps[key].weight, closed.maps[key].weight, atol=1e-5)


def test_the_number_of_steps_and_the_rate_of_the_temperature(closed, monkeypatch):
    """At least config.steps, and config.passes passes over the items; the last quarter of the losses is averaged."""
    started, groups = [], []
    real = torch.optim.AdamW

    def adam(given, **options):
        groups.append(([len(group["params"]) for group in given], given[1]["lr"], options))
        return real(given, **options)

    monkeypatch.setattr(torch.optim, "AdamW", adam)

    def progress(what, total):
        started.append((what, total))
        return lambda steps: None

    for steps, passes, batch in ((3, 2, 100), (9, 2, 100), (1, 1, 1_000)):
        config = TRAINED.model_copy(
            update={"nested": (4, 8, 16), "steps": steps, "passes": passes, "batch": batch, "learning_rate": 0.25}
        )
        _Trainer(closed, THREE, N, config, seed=0).train("halves", progress)
    name = "alignment, halves"
    assert started == [(name, 6), (name, 9), (name, 1)]  # 300 items: three steps a pass
    assert groups == [([3, 1], 1e-2, {"lr": 0.25, "weight_decay": 0.0})] * 3
    assert (MIN_PAIRED_ITEMS, MAX_TUNING_ITEMS) == (20, 5_000)


def test_a_step_draws_present_channels_only():
    """Each item has two of three channels. If a step drew the third, the loss would be that of chance."""
    gaps = {name: views(v.space, np.flatnonzero(np.arange(N) % 3 != i)) for i, (name, v) in enumerate(THREE.items())}
    losses = fit_alignment(gaps, N, TRAINED, seed=0).losses
    assert max(losses.values()) < 0.3 * np.log(TRAINED.batch)


def test_the_seed_determines_the_selected_settings():
    noisy = simulate(60, seed=4, noise=3.0)
    channels = {"text": views(TEXT, source=noisy), "image": views(IMAGE, source=noisy)}
    config = CLOSED.model_copy(update={"shrinkage": tuple(np.geomspace(0.1, 30, 8).tolist()), "power": (0.5, 1.0)})
    selected = [
        tuple(fit_alignment(channels, 60, config, seed=s).chosen.shrinkage.values()) for s in (0, 0, 0, 0, 1, 2, 3)
    ]
    assert len(set(selected[:4])) == 1
    assert len(set(selected)) > 1


def test_the_seed_determines_the_space(trained):
    again = fit_alignment(THREE, N, TRAINED, seed=0)
    assert again.alignment.space == trained.alignment.space
    assert again.losses == trained.losses
    assert fit_alignment(THREE, N, TRAINED, seed=1).alignment.space != trained.alignment.space


def test_progress_reports_each_stage():
    reported = {}

    def start(name, total):
        reported[name] = [total]
        return reported[name].append

    config = TRAINED.model_copy(update={"steps": 3, "passes": 2, "batch": 100})
    fit_alignment(THREE, N, config, seed=0, progress=start)
    assert reported == {
        f"alignment, {stage}": [6] + [1] * 6 for stage in ("pairs", "halves")
    }  # 2 passes of 3 batches


# missing, rare and shared spaces


def test_channels_of_one_space_share_one_map():
    rng = np.random.default_rng(5)
    speech = unit(KNOWN[TEXT] + 0.02 * rng.standard_normal((N, 40)).astype(np.float32))
    channels = {"text": views(TEXT), "speech": Views(TEXT, np.arange(0, N, 2), speech[::2]), "image": views(IMAGE)}
    alignment = fit_alignment(channels, N, CLOSED, seed=0).alignment
    assert set(alignment.maps) == {TEXT, IMAGE}
    vectors = np.concatenate([KNOWN[TEXT], speech[::2]])
    np.testing.assert_allclose(alignment.maps[TEXT].mean, vectors.mean(0), atol=1e-6)
    spoken = {"speech": UNSEEN["text"], "image": UNSEEN["image"]}
    assert cross_channel_mrr(alignment, spoken, HELD) > 0.95  # speech is mapped as text


def test_items_with_missing_channels_are_trained_on(trained):
    rng = np.random.default_rng(0)
    partial = {name: views(v.space, np.sort(rng.permutation(N)[:200])) for name, v in THREE.items()}
    for config in (CLOSED, TRAINED):
        assert cross_channel_mrr(fit_alignment(partial, N, config, seed=0).alignment, UNSEEN, HELD) > 0.9


@pytest.mark.parametrize("config", [CLOSED, TRAINED], ids=["closed", "trained"])
@pytest.mark.parametrize("items", [[], [7], [7, 7], [7, 200]])
def test_a_space_with_few_items_does_no_harm(config, items):
    channels = {"text": views(TEXT), "image": views(IMAGE), "sound": views(SOUND, items)}
    alignment = fit_alignment(channels, N, config, seed=0).alignment
    assert set(alignment.maps) == ({TEXT, IMAGE, SOUND} if items else {TEXT, IMAGE})
    for affine in alignment.maps.values():
        assert np.isfinite(affine.weight).all()
    two = {name: UNSEEN[name] for name in ("text", "image")}
    assert cross_channel_mrr(alignment, two, HELD) > 0.9
    if len(set(items)) == 1:  # a map cannot be fitted on one sound: it maps to zero, not to noise
        sound = alignment.channel(embedded(SOUND, NEW[SOUND]))
        assert not sound.present.any()
        assert not sound.vectors.any()
        text = alignment.channel(embedded(TEXT, NEW[TEXT]))
        np.testing.assert_allclose(fuse({"a": sound, "b": text}).vectors, text.vectors, atol=1e-6)


def test_too_few_items_with_two_channels():
    nineteen = {"text": views(TEXT), "image": views(IMAGE, np.arange(19))}
    with pytest.raises(DataError, match=r"items that have two of text, image; 19 do, at least 20 are needed: give"):
        fit_alignment(nineteen, N, CLOSED, seed=0)
    repeated = {"text": Views(TEXT, np.zeros(50, np.int64), KNOWN[TEXT][:50])}
    with pytest.raises(DataError, match="two of text; 0 do"):  # two views of one channel are not two channels
        fit_alignment(repeated, N, CLOSED, seed=0)
    twenty = {"text": views(TEXT), "image": views(IMAGE, np.arange(20))}
    assert set(fit_alignment(twenty, N, CLOSED, seed=0).alignment.maps) == {TEXT, IMAGE}


@pytest.mark.parametrize("nested", [(), (8, 4), (4, 4), (0, 4)])
def test_nested_dimensions_ascend(nested):
    with pytest.raises(ValueError, match="ascending dimensions are needed"):
        AlignmentConfig(nested=nested)


# application to contents


def test_a_channel_is_mapped_and_masked(trained):
    alignment = trained.alignment
    vectors = NEW[IMAGE][:3] * np.array([[1], [0], [1]], np.float32)
    channel = Embedded(IMAGE, vectors, np.array([True, False, True]), (Failure(1, 0, "broken"),))
    mapped = alignment.channel(channel)
    image = alignment.maps[IMAGE]
    by_hand = (vectors[[0, 2]] - image.mean).astype(np.float64) @ image.weight
    np.testing.assert_allclose(
        mapped.vectors[[0, 2]], by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True), atol=1e-5
    )
    assert not mapped.vectors[1].any()
    assert mapped.present.tolist() == [True, False, True]
    assert mapped.failures == channel.failures
    assert mapped.space == alignment.space
    assert mapped.vectors.dtype == np.float32


def test_an_unknown_space_is_rejected_with_all_keys_printed(closed):
    unknown = replace(TEXT, revision="2")
    with pytest.raises(SpaceError) as error:
        closed.channel(embedded(unknown, NEW[TEXT]))
    assert str(unknown) in str(error.value)
    assert all(str(key) in str(error.value) for key in (TEXT, IMAGE, SOUND))


def test_the_space_is_named_by_its_weights():
    alignment, another = noise_maps(0), noise_maps(1)
    assert alignment.space == noise_maps(0).space
    assert alignment.space != another.space
    assert alignment.space.dimension == alignment.dimension == 16
    reordered = Alignment(dict(reversed(alignment.maps.items())), alignment.nested)
    assert reordered.space == alignment.space
    for part in ("mean", "weight"):
        numbers = getattr(alignment.maps[SOUND], part).copy()
        numbers.flat[3] = np.nextafter(numbers.flat[3], np.float32(9))
        changed = Alignment(
            {**alignment.maps, SOUND: replace(alignment.maps[SOUND], **{part: numbers})}, alignment.nested
        )
        assert changed.space != alignment.space


SHARED = SpaceKey("recsys alignment", "x", 3)


def test_fusing_by_hand():
    a = embedded(SHARED, [[1, 0, 0], [0.6, 0.8, 0], [0, 0, 0], [0, 0, 0]])
    b = embedded(SHARED, [[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    fused = fuse({"text": a, "image": b})
    half = 0.5**0.5
    np.testing.assert_allclose(fused.vectors, [[half, half, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 0]], atol=1e-6)
    assert fused.present.tolist() == [True, True, True, False]
    assert fused.space == SHARED
    with pytest.raises(SpaceError) as error:
        fuse({"text": a, "image": embedded(replace(SHARED, revision="y"), b.vectors)})
    assert str(error.value).startswith("channel image: ")
    assert str(SHARED) in str(error.value)
    assert str(replace(SHARED, revision="y")) in str(error.value)


def test_fusing_at_a_nested_dimension_weights_channels_equally():
    a = embedded(SHARED, [[0.06, 0.08, 0.995]])  # the first two coordinates are almost zero
    b = embedded(SHARED, [[0, 1, 0]])
    fused = fuse({"text": cut(a, 2), "image": cut(b, 2)})
    by_hand = np.array([0.6, 0.8 + 1])
    np.testing.assert_allclose(fused.vectors[0], by_hand / np.linalg.norm(by_hand), atol=1e-5)
    assert fused.space == SHARED.cut(2)


def test_a_nested_cut_is_the_normalised_prefix_and_finds_items(closed):
    mapped = {name: closed.channel(embedded(v.space, v.vectors)) for name, v in UNSEEN.items()}
    text, image = (cut(mapped[name], 8) for name in ("text", "image"))
    prefix = mapped["text"].vectors[:, :8]
    np.testing.assert_allclose(text.vectors, prefix / np.linalg.norm(prefix, axis=1, keepdims=True), atol=1e-5)
    assert text.space == closed.space.cut(8)
    assert ((text.vectors @ image.vectors.T).argmax(1) == np.arange(HELD)).mean() > 0.9
    tail = unit(mapped["text"].vectors[:, 8:]) @ unit(mapped["image"].vectors[:, 8:]).T
    assert (tail.argmax(1) == np.arange(HELD)).mean() < 0.5  # the first eight coordinates hold all eight factors


# views and agreement


def test_views_by_hand():
    channel = Embedded(TEXT, KNOWN[TEXT][:4], np.array([True, False, True, True]))
    present = Views.of(channel)
    assert present.items.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(present.vectors, KNOWN[TEXT][[0, 2, 3]])
    several = Views(TEXT, np.array([4, 0, 2, 0, 3]), np.arange(5, dtype=np.float32)[:, None])
    kept = several.where(np.array([True, True, False, False, True]))  # items 0, 1, 4 become 0, 1, 2
    assert kept.items.tolist() == [2, 0, 0]
    assert kept.vectors[:, 0].tolist() == [0, 1, 3]
    assert kept.space == TEXT
    assert several.where(np.zeros(5, dtype=bool)).items.tolist() == []


def on_circle(degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_agreement_by_hand():
    a, b = SpaceKey("a", "1", 2), SpaceKey("b", "1", 2)
    identity = AffineMap(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    alignment = Alignment({a: identity, b: identity}, (2,))
    views_a = Views(a, np.array([0, 1, 2]), on_circle([0, 90, 180]))
    views_b = Views(b, np.array([0, 1, 2]), on_circle([20, 170, 100]))
    # ranks from a: item 0: 1; item 1 (90°): 3, after 2 (10° away) and 0 (70°); item 2 (180°): 2, after 1
    # ranks from b: item 0: 1; item 1 (170°): 2, after 2; item 2 (100°): 2, after 1
    expected = np.mean([np.mean([1, 1 / 3, 1 / 2]), np.mean([1, 1 / 2, 1 / 2])])
    assert cross_channel_mrr(alignment, {"a": views_a, "b": views_b}, 3) == pytest.approx(expected)
    same = {"a": views_a, "c": Views(a, views_a.items, on_circle([20, 170, 100]))}
    assert cross_channel_mrr(alignment, same, 3) == pytest.approx(
        expected
    )  # channels of one space search each other, too
    assert cross_channel_mrr(alignment, {"a": views_a}, 3) == 0
    fewer = {"a": views_a, "b": Views(b, np.array([0, 2]), on_circle([20, 100]))}
    # item 1 is not in b; ranks from a, among 20° and 100°: 1 and 1; from b, among all of a: 1 and 2
    assert cross_channel_mrr(alignment, fewer, 3) == pytest.approx(np.mean([1, np.mean([1, 1 / 2])]))
    repeated = {"a": views_a, "b": Views(b, np.array([0, 1, 2, 2]), on_circle([20, 170, 40, 160]))}
    # item 2 is found at the mean of its views, 100°; each view is a query: 40° ranks it third, 160° first
    from_b = np.mean([1, 1 / 2, 1 / 3, 1])
    assert cross_channel_mrr(alignment, repeated, 3) == pytest.approx(np.mean([np.mean([1, 1 / 3, 1 / 2]), from_b]))


def test_zero_vectors_have_the_mid_rank():
    a, b = SpaceKey("a", "1", 2), SpaceKey("b", "1", 2)
    identity, zero = (AffineMap(np.zeros(2, np.float32), scale * np.eye(2, dtype=np.float32)) for scale in (1, 0))
    channels = {
        "a": Views(a, np.arange(3), on_circle([0, 90, 180])),
        "b": Views(b, np.arange(3), on_circle([0, 90, 180])),
    }
    assert cross_channel_mrr(Alignment({a: identity, b: identity}, (2,)), channels, 3) == 1
    assert cross_channel_mrr(Alignment({a: identity, b: zero}, (2,)), channels, 3) == 0.5
