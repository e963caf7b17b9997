"""When masks are revised by default, and how often the revision is compiled."""

import logging
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import masks, schedules, training
from tests.cases import few
from tests.training.loops import batch, init_params, loss

SCHEDULES: dict[str, tuple[Any, int]] = {
    "cubic": (schedules.cubic(0, 6, 0.75), 7),
    "late cubic": (schedules.cubic(3, 9, 0.75), 10),
    "exponential": (schedules.exponential(2, 5, 0.75), 6),
    "cyclic": (schedules.cyclic(0, 8, 0.75, cycles=2), 9),
    "constant": (schedules.jump(0.75), 1),
    "jump": (schedules.jump(0.75, step=4), 5),
    "optax": (schedules.from_optax(optax.linear_schedule(0.0, 0.75, 5), end=5), 6),
    "optax without an end": (schedules.from_optax(optax.linear_schedule(0.0, 0.75, 5)), 6),
    "a function": (lambda step: 0.75, 1),
}


@pytest.mark.parametrize("name", few(SCHEDULES, "late cubic", "cyclic", "optax without an end"))
def test_by_default_a_run_until_the_end_of_the_schedule_reaches_its_sparsity(name):
    schedule, steps = SCHEDULES[name]
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.gradual(schedule))
    params = init_params()
    state = optimizer.init(params)
    step = jax.jit(lambda p, s, x: optimizer.update(jax.grad(loss)(p, x), s, p))
    for i in range(steps):
        updates, state = step(params, state, batch(i))
        params = optax.apply_updates(params, updates)
    assert float(masks.sparsity(params, jaxprune.get_masks(state))) == 0.75
    assert bool(training.is_finished(state)) == (name not in ("optax without an end", "a function"))


def test_the_default_follows_a_long_schedule_every_hundred_steps():
    due: Any = training.gradual(schedules.cubic(50, 1060, 0.9)).is_due
    assert [step for step in range(3000) if due(step)] == [*range(50, 1060, 100), 1060]


def test_an_update_outside_jit_is_compiled_once():
    compiled: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Finished XLA compilation" in record.getMessage():
                compiled.append(record.getMessage())

    log, recorder = logging.getLogger("jax._src.dispatch"), Recorder()
    log.addHandler(recorder)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        for packed in (False, True):
            method = training.gradual(schedules.cubic(0, 6, 0.75), when=schedules.every(2, 0, 6))
            optimizer: Any = jaxprune.sparsify(optax.adam(0.1), method, packed=packed)
            params: Any = init_params()
            grads = init_params()
            state = optimizer.init(params)
            for step in range(6):
                updates, state = optimizer.update(grads, state, params, note=len)
                params = optax.apply_updates(params, updates)
                if step == 0:
                    assert compiled
                    compiled.clear()
            assert compiled == []
            assert np.count_nonzero(params["first"]["kernel"]) < 48
    finally:
        log.removeHandler(recorder)
        log.setLevel(level)
        log.propagate = propagate
