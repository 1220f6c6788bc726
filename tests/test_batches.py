import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdwd.batches import batches, first, pack, peek
from tfdwd.errors import Error

IMAGES = np.arange(10 * 4 * 4 * 1, dtype=np.uint8).reshape(10, 4, 4, 1)
LABELS = np.arange(10)


@pytest.fixture(scope="module")
def one_input():
    return keras.Sequential([keras.Input((4, 4, 1), name="image"), keras.layers.Flatten()])


@pytest.fixture(scope="module")
def two_inputs():
    first, second = keras.Input((4, 4, 1), name="first"), keras.Input((2,), name="second")
    flat = keras.layers.Flatten()(first)
    return keras.Model([first, second], keras.layers.Concatenate()([flat, second]))


def slices(step, *arrays):
    return [tuple(array[i : i + step] for array in arrays) for i in range(0, 10, step)]


def as_generator(step):
    yield from (batch for (batch,) in slices(step, IMAGES))


DATA_OF_ONE_INPUT = {
    "array": lambda: IMAGES,
    "tuple": lambda: (IMAGES, LABELS),
    "weights": lambda: (IMAGES, LABELS, np.ones(10)),
    "tuple of one": lambda: (IMAGES,),
    "dict": lambda: {"image": IMAGES},
    "list of one": lambda: [IMAGES],
    "tensor": lambda: tf.constant(IMAGES),
    "small batches": lambda: slices(3, IMAGES, LABELS),
    "batch as large as all": lambda: slices(10, IMAGES, LABELS),
    "generator": lambda: as_generator(7),
    "batches of dicts": lambda: [{"image": batch} for batch in as_generator(3)],
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(3),
    "tf.data pairs": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(7),
    "tf.data dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": IMAGES}).batch(4),
}


@pytest.mark.parametrize("kind", DATA_OF_ONE_INPUT)
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_every_kind_of_data_gives_the_same_batches(one_input, kind, batch_size):
    found = list(batches(DATA_OF_ONE_INPUT[kind](), one_input, batch_size))
    rows = [len(inputs[0]) for inputs, _ in found]
    assert rows[:-1] == [batch_size] * (len(rows) - 1) and 0 < rows[-1] <= batch_size
    joined = np.concatenate([inputs[0] for inputs, _ in found])
    np.testing.assert_array_equal(joined, IMAGES)
    assert joined.dtype == np.uint8  # Images stay as small as they came.
    assert all(labels is None for _, labels in found)


@pytest.mark.parametrize("kind", ["tuple", "weights", "small batches", "tf.data pairs"])
def test_labels_stay_with_their_images(one_input, kind):
    for inputs, labels in batches(DATA_OF_ONE_INPUT[kind](), one_input, 4, with_labels=True):
        np.testing.assert_array_equal(inputs[0], IMAGES[labels])


SECOND = np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)


@pytest.mark.parametrize(
    "data",
    [
        [IMAGES, SECOND],
        {"second": SECOND, "first": IMAGES},
        ([IMAGES, SECOND], LABELS),
        ((IMAGES, SECOND), LABELS),
        [([first, second],) for first, second in slices(3, IMAGES, SECOND)],
        [[first, second] for first, second in slices(3, IMAGES, SECOND)],
        tf.data.Dataset.from_tensor_slices(((IMAGES, SECOND), LABELS)).batch(3),
    ],
    ids=["list", "dict", "list and labels", "tuple and labels", "tuples", "lists", "tf.data"],
)
def test_several_inputs_come_in_the_order_of_the_model(two_inputs, data):
    found = [inputs for inputs, _ in batches(data, two_inputs, 4)]
    np.testing.assert_array_equal(np.concatenate([first for first, _ in found]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([second for _, second in found]), SECOND)


def test_only_one_batch_of_the_users_is_asked_for_at_a_time(one_input):
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield IMAGES[:3]

    stream = batches(endless(), one_input, 4)
    next(stream)
    assert asked == 2
    next(stream)
    assert asked == 3


def with_value(value, row):
    images = IMAGES.astype(np.float32)
    images[row, 1, 2] = value
    return images


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES[:0], "the data is empty"),
        ([], "the data is empty"),
        (iter(()), "the data is empty"),
        (7, "expected an array, a tuple .* got int"),
        ("images.npz", "got str"),
        (IMAGES[..., 0], r"'image': expected shape \(rows, 4, 4, 1\), got \(10, 4, 4\); the ch"),
        (IMAGES[0], "the batch axis is missing"),
        (tf.data.Dataset.from_tensor_slices(IMAGES), "the batch axis is missing: batch the data"),
        (IMAGES[:, :3], r"batch 0, input 'image': expected .* got \(10, 3, 4, 1\)$"),
        ([IMAGES, IMAGES[:, :3]], "batch 1, input 'image'"),
        (np.float32(3), r"got \(\)"),
        (with_value(np.nan, 6), "batch 0, input 'image': NaN or infinity in row 6"),
        ([IMAGES, with_value(-np.inf, 9)], "batch 1, input 'image': NaN or infinity in row 9"),
        (IMAGES.astype(str), "batch 0, input 'image': expected numbers"),
        ([[1, 2]], "expected 1 inputs .* got 2"),
        ([object()], "batch 0, input 'image': expected an array, got object"),
        ({"picture": IMAGES}, r"expected the inputs \['image'\], got \['picture'\]"),
        ((IMAGES, LABELS, LABELS, LABELS), "got a tuple of 4"),
    ],
)  # fmt: skip
def test_wrong_data_is_a_clear_error(one_input, data, message):
    with pytest.raises(Error, match=message):
        list(batches(data, one_input, 4))


def test_wrong_data_of_two_inputs_is_a_clear_error(two_inputs):
    with pytest.raises(Error, match="several inputs are a list or a dict"):
        list(batches((IMAGES, SECOND), two_inputs))
    with pytest.raises(Error, match="same number of rows in all, got first: 10, second: 9"):
        list(batches([IMAGES, SECOND[:9]], two_inputs))
    with pytest.raises(Error, match="'second': expected shape"):
        list(batches([IMAGES, IMAGES], two_inputs))


@pytest.mark.parametrize("data", [IMAGES, (IMAGES,), (IMAGES, {"a": 3}), (IMAGES, None)])
def test_missing_labels_are_a_clear_error(one_input, data):
    with pytest.raises(Error, match="no array of labels"):
        list(batches(data, one_input, with_labels=True))


def test_labels_of_another_length_are_a_clear_error(one_input):
    with pytest.raises(Error, match="image: 10, labels: 9"):
        list(batches((IMAGES, LABELS[:9]), one_input, with_labels=True))


def test_batch_size_below_one_is_a_clear_error(one_input):
    with pytest.raises(Error, match="batch_size of at least 1, got 0"):
        list(batches(IMAGES, one_input, 0))


def test_a_model_that_was_not_built_is_a_clear_error():
    with pytest.raises(Error, match="without inputs of its own"):
        list(batches(IMAGES, keras.Sequential([keras.layers.Flatten()])))


def test_an_axis_of_any_size_takes_any_size():
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.ReLU()])
    [(inputs, _)] = batches(IMAGES, model)
    assert inputs[0].shape == IMAGES.shape


def test_float64_and_bool_and_bfloat16_pass(one_input):
    for dtype in (np.float64, bool, tf.bfloat16.as_numpy_dtype):
        [(inputs, _)] = batches(IMAGES.astype(dtype), one_input)
        assert inputs[0].dtype == dtype


def test_pack_gives_what_the_model_takes(one_input, two_inputs, two_in_two_out):
    np.testing.assert_array_equal(one_input(pack(one_input, [IMAGES]))[3], IMAGES[3].ravel())
    assert two_inputs(pack(two_inputs, [IMAGES, SECOND])).shape == (10, 18)
    packed = pack(two_in_two_out, ["extra", "picture"])
    assert packed == {"picture": "picture", "extra": "extra"}


def test_the_first_images_are_taken_and_no_more_is_read(two_in_two_out):
    source = np.random.default_rng(0)
    data = [
        {"picture": source.normal(size=(4, 6, 6, 2)), "extra": source.normal(size=(4, 3))}
        for _ in range(3)
    ]
    read = []

    def stream():
        for number, batch in enumerate(data):
            read.append(number)
            yield batch

    extra, picture = first(two_in_two_out, stream(), 5)
    assert read == [0, 1]
    np.testing.assert_array_equal(extra, [*data[0]["extra"], data[1]["extra"][0]])
    np.testing.assert_array_equal(picture, [*data[0]["picture"], data[1]["picture"][0]])
    assert [len(x) for x in first(two_in_two_out, iter(data), 99)] == [12, 12]


def test_a_stream_that_was_peeked_into_starts_from_its_start():
    given = [[np.full((2, 3), number)] for number in range(4)]
    [images], stream = peek(iter(given), 3)
    assert images[:, 0].tolist() == [0, 0, 1]
    assert [batch[0, 0] for [batch] in stream] == [0, 1, 2, 3]
    with pytest.raises(Error, match=r"images of one size, got \(2,\) and \(3,\); resize or crop"):
        peek([[np.zeros((1, 3))], [np.zeros((1, 2))]], 2)
