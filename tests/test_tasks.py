"""benchmarks/tasks: the scores and targets of the three tasks."""

import importlib
import sys

import keras
import numpy as np
import pytest

import tfdwd


@pytest.fixture(scope="module")
def tasks(pytestconfig, data_dir):
    folder = str(pytestconfig.rootpath / "benchmarks" / "tasks")
    sys.path.insert(0, folder)
    yield importlib.import_module("tasks")
    sys.path.remove(folder)
    for name in ("tasks", "scenes"):
        del sys.modules[name]


@pytest.fixture
def scene(tasks):
    if not tasks.scenes.common.FASHION.is_dir():
        pytest.skip("no Fashion-MNIST: install dataset-fashion-mnist")
    return tasks.scenes.scenes("test", 20, tasks.CANVAS, seed=0)


def test_boxes_hold_the_pixels_of_their_articles_and_no_others(scene):
    images, masks, objects = scene
    assert images.dtype == np.uint8 and images.shape[1:3] == masks.shape[1:]
    for mask, found in zip(masks, objects, strict=True):
        left = mask.copy()
        for kind, *box in found[found[:, 0] > 0]:
            top, low, bottom, right = map(int, box)
            inside = mask[top:bottom, low:right] == kind
            # The box is as small as can be.
            assert all(inside[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))
            left[top:bottom, low:right] = 0
        assert not left.any()
        assert (found[:, 0] > 0).any()


def test_the_parts_share_no_photograph(tasks):
    parts = [tasks.scenes.small_images(part) for part in ("train", "calibration", "test")]
    assert [len(part) for part in parts] == [3000, 2085, 1017]
    train, calibration, _ = ({image.tobytes() for image in part} for part in parts)
    assert len(train & calibration) < 5  # CIFAR-10 has a few images twice


def test_perfect_cells_have_an_average_precision_of_1_and_wrong_ones_less(tasks, scene):
    _, _, objects = scene
    targets = tasks.cell_targets(objects)
    classes, boxes = np.eye(6)[targets["classes"]], targets["boxes"][..., :4]
    metric = tasks.AP50()
    metric.update_state(objects, {"classes": classes, "boxes": boxes})
    assert metric.result() == 1
    metric.reset_state()
    metric.update_state(objects, {"classes": classes, "boxes": boxes / 2})  # an IoU of 1 / 4
    assert metric.result() == 0
    # Boxes of the outputs are what the labels say, and one for each object.
    for image, kinds, cells in zip(objects, classes, boxes, strict=True):
        found = tasks.detections(kinds, cells)
        wanted = image[image[:, 0] > 0]
        order = [np.argsort(array[:, 0] * 1000 + array[:, 1]) for array in (wanted, found[:, 1:])]
        np.testing.assert_allclose(found[order[1], 1:], wanted[order[0]], atol=1e-4)


def test_boxes_without_an_area_are_given_once(tasks):
    classes = np.broadcast_to(np.eye(6)[3], (2, 3, 6))
    assert len(tasks.detections(classes, np.zeros((2, 3, 4)))) == 6


def test_average_precision_is_the_area_under_the_curve(tasks):
    metric = tasks.AP50()
    # Of 4 objects of a class 3 are found, after one, none and two wrong detections:
    # precisions 1/2, 2/3, 3/6; at its recall and above the best is 2/3, 2/3, 1/2.
    metric.objects[1] = 4
    right = [False, True, True, False, False, True]
    metric.found = [(1 - place / 10, 1, hit) for place, hit in enumerate(right)]
    assert metric.result() == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 4)
    # A class without any detection counts with 0.
    metric.objects[2] = 1
    assert metric.result() == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 8)


def test_the_networks_go_through_the_verbs(tasks, scene):
    for task in tasks.TASKS:
        keras.utils.set_random_seed(0)
        model = task.network()
        size = {"super_resolution": (8, 12), "detection": tasks.CANVAS}.get(task.name, tasks.SCENE)
        images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
        if task.name == "super_resolution":
            labels = np.repeat(np.repeat(images, 2, 1), 2, 2)
        else:
            labels = scene[2][:2] if task.name == "detection" else np.zeros((2, *size), int)
        [score] = tfdwd.evaluate(model, (images, labels), metric=task.metric).scores
        assert score.metric == task.metric if isinstance(task.metric, str) else "ap50"
        assert tfdwd.evaluate(model, images, reference=model).scores[0].value == 1
