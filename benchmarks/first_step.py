"""A ResNet-18's first step, in a process of its own that knows no PyTorch."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import image_task, init_state, make_optimizer, make_train_step, resnet18
from wsjax.data.datasets import REPORT_MEAN, REPORT_STD
from wsjax.scripts import process
from wsjax.training.train import Batch, options_to_draw


def main(width: int, batch_size: int, cache: str) -> None:
    """Trains for one step, with a folder for all that is compiled."""
    os.environ["XDG_CACHE_HOME"] = cache
    process.set_up()
    task = image_task(resnet18(10, width), (32, 32, 3), REPORT_MEAN, REPORT_STD)
    optimizer = make_optimizer("sgd", 0.001)
    draw = jax.jit(lambda key: init_state(task, optimizer, key), compiler_options=options_to_draw())
    state = draw(jax.random.key(0))
    images, labels = np.zeros((batch_size, 32, 32, 3), np.uint8), np.zeros(batch_size, np.int32)
    step = jax.jit(make_train_step(task, optimizer), donate_argnums=0)
    jax.block_until_ready(step(state, Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(batch_size))))
