"""How images are changed before they are trained on, and which of them may be."""

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import tfdwd
from tfdwd.training import augmentation
from tfdwd.training.augmentation import Moves, moved
from tfdwd.training.epochs import Reading, open_epochs

IMAGES = np.random.default_rng(0).normal(size=(40, 16, 16, 3)).astype(np.float32)


def _model(output: Any) -> keras.Model:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, output(image))


def _whether(found: Any) -> Any:
    """Two classes by the sign of (images, 1)."""
    return keras.ops.softmax(keras.ops.concatenate([found, -found], axis=-1) * 50.0)


def _mean(image: Any) -> Any:
    return keras.ops.mean(image, axis=(1, 2))[:, :1]


def _side(image: Any) -> Any:  # of more red: the answer turns with the image
    red = image[:, :, :, :1]
    return keras.ops.mean(red[:, :, :8], axis=(1, 2)) - keras.ops.mean(red[:, :, 8:], axis=(1, 2))


def _scores(image: Any) -> Any:  # of two classes: what both have more of changes none
    found = _mean(image) * 50.0
    return keras.ops.concatenate([found, -found], axis=-1) + _side(image) * 1000.0


def _blurred(image: Any) -> Any:
    return keras.ops.average_pool(image, 4, 4)


@pytest.mark.parametrize(
    ("output", "kinds", "taught", "expected"),
    [
        (lambda x: _whether(_mean(x)), ["probabilities"], True, Moves(True, (2, 2), True)),
        (lambda x: _whether(_mean(x)), ["probabilities"], False, Moves(True, (2, 2), False)),
        (lambda x: _whether(_mean(x)), ["logits"], True, Moves(True, (2, 2), True)),
        (lambda x: _scores(x), ["logits"], True, Moves(True, (2, 2), True)),
        (lambda x: _scores(x), ["values"], True, Moves(False, (0, 0), False)),
        (lambda x: _whether(_side(x)), ["probabilities"], True, Moves(False, (2, 2), True)),
        (lambda x: _mean(x), ["values"], True, Moves(True, (2, 2), False)),
        (lambda x: _side(x), ["values"], True, Moves(False, (0, 0), False)),
        (lambda x: x * 2.0, ["values"], True, Moves(True, (2, 2), False)),
        (lambda x: keras.ops.flip(x, 2), ["values"], True, Moves(True, (0, 0), False)),
        # A map of a quarter of the size: two pixels are half a place of it.
        (lambda x: _blurred(x), ["values"], True, Moves(True, (0, 0), False)),
        (lambda x: [_whether(_mean(x)), _side(x)], ["probabilities", "values"], True,
         Moves(False, (0, 0), False)),
        (lambda x: keras.ops.reshape(x, (-1, 256, 3)), ["values"], True, Moves()),
    ],
)  # fmt: skip
def test_only_moves_that_change_no_answer_are_used(
    output: Any, kinds: list[str], taught: bool, expected: Moves
) -> None:
    source = np.random.default_rng(1)
    # Smooth ones, as photographs are: a shift changes little of what is there.
    images = np.repeat(np.repeat(source.normal(size=(64, 4, 4, 3)), 4, 1), 4, 2) + 0.2
    model = _model(output)
    found = augmentation.chosen(
        model, [images.astype(np.float32)], kinds, model if taught else None
    )
    assert found == expected


@pytest.mark.parametrize(("bias", "mixes"), [(0.0, False), (3.0, True)])
def test_nothing_is_mixed_for_a_student_that_is_far_on_mixed_images_alone(
    bias: float, mixes: bool
) -> None:
    def flat(image: Any) -> Any:  # more than 0 of mixed images, whose variance is less
        return keras.ops.relu(0.9 - keras.ops.var(image, axis=(1, 2, 3), keepdims=True)[:, 0, 0])

    images = IMAGES / IMAGES.std((1, 2, 3), keepdims=True)
    student = _model(lambda x: _whether(_mean(x) + bias + flat(x)))
    teacher = _model(lambda x: _whether(_mean(x)))
    found = augmentation.chosen(teacher, [images], ["probabilities"], student)
    assert found.mixes == mixes


@pytest.mark.parametrize("rows", [3, 256, 511, 767])
def test_moves_are_tried_on_images_from_all_over_the_data(rows: int) -> None:
    images = np.arange(rows, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 1), "f")
    image = keras.Input((4, 4, 1))
    reading = Reading(
        keras.Model(image, image * 2.0), 8, fixed=None, with_labels=False, seed=0, steps=None,
        held=0.1,
    )  # fmt: skip
    [sample] = open_epochs(images, reading, 0).sample
    found = sample[:, 0, 0, 0]
    assert len(found) == min(rows, 256) and (found[0], found[-1]) == (0, rows - 1)
    assert np.diff(found).min() >= 1 and np.diff(found).max() <= np.ceil(rows / 255)


def test_nothing_is_moved_that_is_no_image() -> None:
    vector = keras.Input((5,))
    model = keras.Model(vector, layers.Softmax()(vector))
    assert augmentation.chosen(model, [np.ones((9, 5))], ["probabilities"], model) == Moves()
    two = keras.Model([vector, keras.Input((16, 16, 3))], layers.Softmax()(vector))
    given = [np.ones((40, 5)), IMAGES]
    assert augmentation.chosen(two, given, ["probabilities"], two) == Moves()


def test_images_are_mirrored_and_shifted_with_reflected_edges() -> None:
    found = moved(
        IMAGES, np.arange(40) % 2 > 0, np.full(40, 3), np.arange(40) % 3 - 1
    )  # down by 3, right by -1, 0, 1
    for number in range(40):
        image = IMAGES[number, :, :: -1 if number % 2 else 1]
        right = number % 3 - 1
        padded = np.pad(image, ((3, 0), (max(right, 0), max(-right, 0)), (0, 0)), mode="reflect")
        wide = slice(0, 16) if right >= 0 else slice(-right, None)
        np.testing.assert_array_equal(found[number], padded[:16, wide])


def test_every_move_comes_and_none_is_too_far() -> None:
    place = np.arange(16, dtype=np.float32)
    images = np.broadcast_to(place[None, :, None, None] + 16 * place[:, None], (500, 16, 16, 1))
    found = Moves(True, (2, 1), False)(images, np.random.default_rng(0))
    middle = {tuple(np.divmod(int(v), 16)) for v in found[:, 8, 8, 0]}
    columns, rows = zip(*middle, strict=True)
    assert set(rows) == {6, 7, 8, 9, 10} and set(columns) == {6, 7, 8, 9}


def test_mixed_images_lie_between_two() -> None:
    images = np.repeat([[0], [100]], 50, 0).astype(np.uint8).reshape(100, 1, 1, 1)
    found = Moves(mixes=True)(images, np.random.default_rng(0))
    assert found.dtype == np.float32 and found.min() == 0 and found.max() == 100
    between = (found > 1) & (found < 99)
    assert 30 < between.sum() < 70  # half of the pairs are of one kind


def _stream(workers_: int, index: int, monkeypatch: Any) -> list[np.ndarray]:
    monkeypatch.setattr("tfdwd.workers.count", lambda: workers_)
    monkeypatch.setattr("tfdwd.workers.index", lambda: index)
    model = _model(lambda x: layers.Softmax()(_mean(x)))
    reading = Reading(model, 16 // workers_, None, False, 0, None, 0.1)
    opened = open_epochs(IMAGES, reading, 0)
    assert opened.augmented is not None
    stream = opened.augmented(lambda epoch: Moves(True, (2, 2), True))
    return [inputs[0] for inputs, _ in itertools.islice(stream, 5)]


def test_workers_take_their_part_of_the_same_steps(monkeypatch: Any) -> None:
    whole = _stream(1, 0, monkeypatch)
    parts = [_stream(2, index, monkeypatch) for index in (0, 1)]
    for step, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(step, np.concatenate([first, second]))


def _taught(teacher: keras.Model, images: Any = IMAGES, **options: Any) -> tuple[Any, keras.Model]:
    student = keras.models.clone_model(teacher)
    student.set_weights([w + 0.1 * np.random.default_rng(3).normal(size=w.shape)
                         for w in teacher.get_weights()])  # fmt: skip
    history = tfdwd.finetune(student, images, teacher=teacher, batch_size=8, **options)
    return history, student


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = layers.Conv2D(8, 3, activation="relu")(image := keras.Input((16, 16, 3)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4, activation="softmax")(x))


def test_ones_own_augmentation(teacher: keras.Model, tmp_path: Path) -> None:
    seen: list[int] = []

    def brighter(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return images + 0.1

    _taught(teacher, epochs=1, augment=brighter)
    assert seen == [8] * 4
    pairs = [(IMAGES[:20], IMAGES[:20]), (IMAGES[20:], IMAGES[20:])]  # streams, too
    _taught(teacher, [a for a, _ in pairs], epochs=2, augment=brighter)
    assert seen[4:] == [20] * 4
    layer = layers.RandomTranslation(0.2, 0.2, seed=1)
    once, _ = _taught(teacher, epochs=2, augment=layer)
    again, _ = _taught(teacher, epochs=2, augment=layers.RandomTranslation(0.2, 0.2, seed=5))
    assert once.history == again.history  # by the seed of finetune
    other, _ = _taught(teacher, epochs=2, augment=layer, seed=1)
    assert other.history["loss"] != once.history["loss"]
    plain, _ = _taught(teacher, epochs=2, augment=None)
    assert plain.history["loss"] != once.history["loss"]


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("flips", "augment: expected 'auto', None, a Keras layer or a function .* got 'flips'"),
        (lambda x: x[:, :8], r"expected finite images of the shape \(8, 16, 16, 3\).*\(8, 8"),
        (lambda x: x / 0.0, "augment: expected finite images"),
        (lambda x: x.no, r"augment: it failed on a batch of shape \(8, 16, 16, 3\): AttributeErr"),
        (layers.Dense(4), "augment: expected finite images of the shape"),
    ],
)
def test_a_wrong_augmentation(teacher: keras.Model, augment: Any, message: str) -> None:
    with pytest.raises(tfdwd.Error, match=message), np.errstate(all="ignore"):
        _taught(teacher, epochs=1, augment=augment)


def test_ones_own_augmentation_is_of_one_input(two_in_two_out: keras.Model) -> None:
    inputs = {"extra": np.ones((24, 3)), "picture": np.ones((24, 6, 6, 2))}
    with pytest.raises(tfdwd.Error, match="augment: expected a model of one input, got 2"):
        teacher = keras.models.clone_model(two_in_two_out)
        tfdwd.finetune(two_in_two_out, inputs, teacher=teacher, epochs=1, augment=lambda x: x)


def test_nothing_is_mixed_in_the_last_quarter_of_the_epochs() -> None:
    moves = Moves(True, (2, 2), True).of_epochs(8)
    assert [moves(epoch).mixes for epoch in range(8)] == [True] * 6 + [False] * 2
    assert all(moves(epoch).mirrors and moves(epoch).shifts == (2, 2) for epoch in range(8))
