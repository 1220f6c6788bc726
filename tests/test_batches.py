import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from absl import logging

import tfdwd.batches
from tfdwd.batches import batches, calibration_batches, first, pack, peek
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


class BySequence(keras.utils.PyDataset):
    """Batches of three by index; through `__iter__` it would never end."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return IMAGES[3 * index : 3 * index + 3], LABELS[3 * index : 3 * index + 3]

    def __iter__(self):
        return itertools.cycle(self[index] for index in range(4))


class OldProtocol:
    """Has no length, and ends by IndexError."""

    def __getitem__(self, index):
        if index == 5:
            raise IndexError
        return IMAGES[2 * index : 2 * index + 2]


class Loader:
    """As PyTorch's DataLoader: a length and one epoch, no index."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(slices(3, IMAGES, LABELS))


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
    "PyDataset": BySequence,
    "old protocol": OldProtocol,
    "loader": Loader,
    "zip": lambda: zip(as_generator(3), slices(3, LABELS), strict=True),
    "tf.data of unknown length": lambda: (
        tf.data.Dataset.from_tensor_slices(IMAGES).filter(lambda image: True).batch(3)
    ),
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


def endless(rows=3):
    return itertools.repeat((IMAGES[:rows], LABELS[:rows]))


ENDLESS = {
    "generator": endless,
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(3).repeat(),
    "tf.data of unknown length": lambda: (
        tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(3).repeat().filter(
            lambda images, labels: True
        )
    ),
    "more than it says": lambda: SimpleLoader(4),
}  # fmt: skip


class SimpleLoader:
    """Endless, though it has a length."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return endless()


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_data_is_refused_with_the_way_out_and_cut_by_images(one_input, kind, monkeypatch):
    monkeypatch.setattr(tfdwd.batches, "_ENDLESS", 300)
    with pytest.raises(Error, match=r"pass .*images="):
        for number, _ in enumerate(batches(ENDLESS[kind](), one_input, 4)):
            assert number < 100
    found = list(batches(ENDLESS[kind](), one_input, 4, with_labels=True, images=7))
    assert [len(labels) for _, labels in found] == [4, 3]
    with pytest.raises(Error, match=r"pass .*images="):
        for number, _ in enumerate(calibration_batches(SimpleLoader(4), one_input, 4)):
            assert number < 10


def test_endless_tf_data_is_refused_before_it_is_read(one_input):
    def read(index):
        raise AssertionError("was read")

    data = tf.data.Dataset.range(3).map(lambda i: tf.py_function(read, [i], tf.float32)).repeat()
    for stream in (batches, calibration_batches):
        with pytest.raises(Error, match=r"got an endless tf\.data\.Dataset"):
            next(stream(data, one_input))


def test_batches_without_rows_do_not_go_on_for_ever(one_input):
    for options in ({}, {"images": 20}):
        data = itertools.chain([IMAGES], itertools.repeat(IMAGES[:0]))
        with pytest.raises(Error, match=r"expected images, got 10 in 10.. batches"):
            list(batches(data, one_input, 4, **options))


@pytest.mark.parametrize("kind", DATA_OF_ONE_INPUT)
@pytest.mark.parametrize("images", [1, 4, 9, 10, 1000])
def test_images_takes_the_first(one_input, kind, images):
    for stream in (batches, calibration_batches):
        found = [inputs[0] for inputs, _ in stream(DATA_OF_ONE_INPUT[kind](), one_input, 4,
                                                   images=images)]  # fmt: skip
        np.testing.assert_array_equal(np.concatenate(found), IMAGES[:images])


@pytest.mark.parametrize("images", [0, -1, 2.0, True, "3", np.nan])
def test_images_must_be_a_number_of_images(one_input, images):
    with pytest.raises(Error, match="images: expected a whole number of at least 1, got"):
        list(batches(IMAGES, one_input, images=images))


def test_calibration_cuts_what_knows_no_length_and_says_so(one_input, monkeypatch):
    said = []
    monkeypatch.setattr(tfdwd.batches, "CALIBRATION_IMAGES", 8)
    monkeypatch.setattr(logging, "warning", lambda *message: said.append(message))

    def count(data, **options):
        return sum(len(inputs[0]) for inputs, _ in calibration_batches(data, one_input, **options))

    assert count(IMAGES) == count(slices(3, IMAGES)) == count(Loader()) == count(BySequence()) == 10
    assert count(as_generator(3), images=9) == 9
    assert count(itertools.islice(as_generator(3), 2)) == 6
    assert not said
    assert count(as_generator(3)) == count(ENDLESS["tf.data of unknown length"]()) == 8
    assert [message[1:] for message in said] == [(8,), (8,)]


def test_images_of_several_sizes_come_in_batches_of_one_size():
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.ReLU()])
    data = [np.zeros((rows, size, size, 1)) for rows, size in ((3, 4), (2, 4), (2, 5), (1, 4))]
    shapes = [inputs[0].shape[:2] for inputs, _ in batches(data, model, 4)]
    assert shapes == [(4, 4), (1, 4), (2, 5), (1, 4)]
    with pytest.raises(Error, match=r"expected shape \(rows, any, any, 1\), got \(2, 0, 4, 1\)"):
        list(batches(np.zeros((2, 0, 4, 1)), model))


def failing(error):
    yield IMAGES
    raise error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: failing(KeyError("x")), "batch 1: the data cannot be read: KeyError: 'x'$"),
        (lambda: failing(Error("own words")), "^own words$"),
        (lambda: map((1).__truediv__, [0]), "batch 0: .* ZeroDivisionError"),
        (lambda: tf.data.TFRecordDataset("/nowhere"), "batch 0: .* NotFoundError: /nowhere"),
        (
            lambda: tf.data.Dataset.from_tensors(b"no").map(tf.io.decode_jpeg),
            r"batch 0: the data cannot be read: InvalidArgumentError: Unknown image file [^{}]*$",
        ),
        (lambda: tf.data.Dataset.range(9).window(3), "got one that cannot be read: TypeError"),
    ],
)
def test_what_fails_while_it_is_read_is_one_clear_error(one_input, data, message):
    with pytest.raises(Error, match=message):
        list(batches(data(), one_input))


@pytest.mark.parametrize(
    ("dtype", "data", "message"),
    [
        ("float32", np.full((2, 4), 1e300), r"1e\+300 in row 0 is too large for float32"),
        ("float16", np.full((2, 4), 1e5, np.float32), "too large for float16"),
        ("float16", np.full((2, 4), 70_000), "70000 in row 0 is too large for float16"),
        ("uint8", np.full((2, 4), 300), "expected numbers that uint8 holds, got 300"),
        ("uint8", np.full((2, 4), -1), "expected numbers that uint8 holds, got -1"),
        ("int32", np.full((2, 4), 0.5), "expected numbers that int32 holds, got 0.5"),
        ("int32", np.full((2, 4), np.nan), "NaN or infinity in row 0"),
        ("int32", np.full((2, 4), 2**40), "expected numbers that int32 holds"),
        ("bool", np.full((2, 4), 2), "expected numbers that bool holds"),
        ("float32", np.full((2, 4), 2**63, np.uint64), None),
        ("float16", np.full((2, 4), 255, np.uint8), None),
        ("int32", np.full((2, 4), 7.0), None),
        ("uint8", np.full((2, 4), 255), None),
        ("bfloat16", np.full((2, 4), 1e38), None),
    ],
)
@pytest.mark.parametrize("rows", [slice(None), slice(1)])
def test_values_are_checked_in_the_dtype_that_the_model_takes(dtype, data, message, rows):
    model = SimpleNamespace(inputs=[SimpleNamespace(name="x", shape=(None, 4), dtype=dtype)])
    refused = contextlib.nullcontext() if message is None else pytest.raises(Error, match=message)
    with refused:
        [(inputs, _)] = batches(data[rows], model)
        assert inputs[0].dtype == data.dtype


def test_a_quantised_input_takes_real_values():
    tensor = SimpleNamespace(name="x", shape=(1, 4), dtype=np.dtype(np.int8), scale=0.1)
    [(inputs, _)] = batches(np.full((1, 4), 500.5), SimpleNamespace(inputs=[tensor]))
    assert inputs[0][0, 0] == 500.5


def with_value(value, row):
    images = IMAGES.astype(np.float32)
    images[row, 1, 2] = value
    return images


def ragged_array():
    images = np.empty(2, object)
    images[:] = [np.zeros((4, 4, 1)), np.zeros((5, 4, 1))]
    return images


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES[:0], "the data is empty"),
        ([], "the data is empty"),
        (iter(()), "the data is empty"),
        (7, "expected an array, a tuple .* got int"),
        ("images.npz", "got str; load the file first"),
        (Path("images.npz"), "got PosixPath; load the file first"),
        (None, "got NoneType"),
        (lambda: IMAGES, "got function; call it"),
        (IMAGES.transpose(0, 3, 1, 2), r"the channels come first: give data.transpose"),
        (np.zeros((2, 5, 5, 1)), r"got \(2, 5, 5, 1\); resize or crop the images"),
        (list(IMAGES), "the batch axis is missing: batch the data"),
        (iter(IMAGES), "the batch axis is missing: batch the data"),
        ([np.zeros((4, 4, 1)), np.zeros((5, 4, 1))], "the batch axis is missing"),
        ([[image, image] for image in IMAGES], r"expected 1 inputs .* one array \(np.stack\)"),
        ([[IMAGES.tolist()]], "expected an array, got list; np.asarray makes one"),
        (ragged_array(), "dtype object; images of several sizes"),
        (tf.ragged.constant([[1], [2, 3]]), "got RaggedTensor; resize or crop"),
        (tf.data.Dataset.from_tensors(tf.ragged.constant([[1], [2, 3]])), "images of several si"),
        (tf.sparse.from_dense([[1]]), "got SparseTensor; .*tf.sparse.to_dense"),
        (PIL.Image.new("L", (4, 4)), "got Image"),
        ([PIL.Image.new("L", (4, 4))], "expected an array, got Image; give batches, such as np.st"),
        (np.array(["cat.jpg"]), "dtype <U7; that is text: load and decode"),
        (tf.data.Dataset.from_tensors([b"cat.jpg"]), "dtype object; that is text: load and"),
        (keras.Input((4, 4, 1)), "KerasTensor"),
        (np.ones((2, 4, 4, 1), complex), "expected numbers, got dtype complex128$"),
        (
            tf.data.Dataset.from_tensors({"id": LABELS, "image": IMAGES[..., 0, None]}).map(
                lambda batch: {"id": batch["id"], "pixels": batch["image"]}
            ),
            r"missing inputs \['image'\]; expected \['image'\], got \['id', 'pixels'\]; take the "
            r"images out: data\['pixels'\], or data.map\(lambda batch: batch\['pixels'\]\)",
        ),
        (IMAGES[..., 0], r"'image': expected shape \(rows, 4, 4, 1\), got \(10, 4, 4\); the ch"),
        (IMAGES[0], "the batch axis is missing"),
        (tf.data.Dataset.from_tensor_slices(IMAGES), "the batch axis is missing: batch the data"),
        (IMAGES[:, :3], r"batch 0, input 'image': expected .* got \(10, 3, 4, 1\); resize"),
        ([IMAGES, IMAGES[:, :3]], "batch 1, input 'image'"),
        (np.float32(3), r"got \(\)"),
        (with_value(np.nan, 6), "batch 0, input 'image': NaN or infinity in row 6"),
        ([IMAGES, with_value(-np.inf, 9)], "batch 1, input 'image': NaN or infinity in row 9"),
        (IMAGES.astype(str), "batch 0, input 'image': expected numbers"),
        ([[1, 2]], "expected 1 inputs .* got 2"),
        ([object()], "batch 0, input 'image': expected an array, got object"),
        ({"picture": IMAGES}, r"missing inputs \['image'\]; expected .*, got \['picture'\]; take"),
        ({}, r"missing inputs \['image'\]; expected \['image'\], got \[\]"),
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
    with pytest.raises(Error, match="batch_size: expected a whole number of at least 1, got 0"):
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


@pytest.mark.parametrize("dtype", [">f4", ">i8", np.longdouble, np.float16])
def test_dtypes_that_tensorflow_does_not_know_become_those_that_it_does(one_input, dtype):
    [(inputs, labels)] = batches(
        (IMAGES.astype(dtype), LABELS.astype(dtype)), one_input, with_labels=True
    )
    np.testing.assert_array_equal(tf.constant(inputs[0]), IMAGES)
    np.testing.assert_array_equal(tf.constant(labels), LABELS)


class Broken:
    """An array that cannot be made."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array today")


@pytest.mark.parametrize("data", [Broken(), (IMAGES, Broken()), iter([(IMAGES, Broken())])])
def test_what_a_users_own_type_raises_is_a_clear_error(one_input, data):
    with pytest.raises(Error, match="NumPy cannot make one: RuntimeError: no array today"):
        list(batches(data, one_input, with_labels=True))


def test_a_wrong_length_does_not_matter(one_input):
    class Lying:
        def __len__(self):
            return -1  # a ValueError in Python

        def __iter__(self):
            return iter([IMAGES])

    [(inputs, _)] = batches(Lying(), one_input)
    np.testing.assert_array_equal(inputs[0], IMAGES)
