"""Input pipelines for images in files, with tf.data."""

from tfdwd.data.imagenet import Source, evaluation, image_folder, tfds, tfrecords, training

__all__ = ["Source", "evaluation", "image_folder", "tfds", "tfrecords", "training"]
