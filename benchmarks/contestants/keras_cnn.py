"""The article's network in Keras on TensorFlow, trained by `model.fit`: images/s of the last epoch.

Sixteen steps are run at a time (`steps_per_execution`), which gains a few per cent. XLA (`--jit`) does not pay on the
CPU: 219 to 534 images/s where the same fit gave 1,397 to 4,548 without (6,000 images, two threads on a busy machine).
mixed_bfloat16 does, 6,600 to 7,400 against 3,800 to 4,000 (one thread, by process time): it is a contestant of its own.
"""

from __future__ import annotations

import time

from contract import MNIST_MEAN, MNIST_STD, answer, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--pipeline", choices=("arrays", "tf.data"), default="arrays")
    given = parser.parse_args()
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    keras.utils.set_random_seed(given.seed)
    if given.precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            self.seconds = time.perf_counter() - self.started

    def part(name: str, offset: int) -> np.ndarray:
        return np.fromfile(given.data / "MNIST/raw" / name, dtype=np.uint8)[offset:]

    def images(name: str) -> np.ndarray:
        return (part(name, 16).reshape(-1, 28, 28, 1).astype("float32") / 255 - MNIST_MEAN) / MNIST_STD

    x, y = images("train-images-idx3-ubyte")[: given.limit], part("train-labels-idx1-ubyte", 8)[: given.limit]
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, dtype="float32"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=given.jit,
        steps_per_execution=16,
    )
    clock = Clock()
    if given.pipeline == "arrays":
        model.fit(x, y, batch_size=128, epochs=given.epochs, callbacks=[clock], verbose=0)
    else:
        pipeline = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(128).prefetch(tf.data.AUTOTUNE)
        model.fit(pipeline, epochs=given.epochs, callbacks=[clock], verbose=0)
    held = images("t10k-images-idx3-ubyte"), part("t10k-labels-idx1-ubyte", 8)
    accuracy = model.evaluate(*held, batch_size=500, verbose=0)[1]
    answer(("keras", "tensorflow-cpu"), images_per_second=len(x) / clock.seconds, accuracy=accuracy)


if __name__ == "__main__":
    main()
