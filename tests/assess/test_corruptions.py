"""Corruptions against SciPy, and relations that must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from jaxprune.assess import corrupted_logits, corruptions
from jaxprune.assess.corruptions import blur, contrast, noise

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(size=(3, 9, 7, 2)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_blur_against_scipy(sigma):
    expected = IMAGES
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=4)
    np.testing.assert_allclose(blur(IMAGES, sigma), expected, atol=1e-6)
    np.testing.assert_allclose(blur(IMAGES[..., 0], sigma), expected[..., 0], atol=1e-6)


def test_no_corruption_leaves_images_as_they_are():
    for same in (blur(IMAGES, 0), contrast(IMAGES, 1), noise(IMAGES, 0, key=KEY)):
        np.testing.assert_allclose(same, IMAGES, atol=1e-6)


def test_contrast_keeps_the_mean_and_shrinks_the_deviation_of_each_image():
    less = np.asarray(contrast(IMAGES, 0.25))
    np.testing.assert_allclose(less.mean((1, 2, 3)), IMAGES.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(less.std((1, 2, 3)), 0.25 * IMAGES.std((1, 2, 3)), rtol=1e-4)


def test_noise_has_its_deviation_stays_in_range_and_hangs_on_the_key():
    grey = jnp.full((4, 50, 50), 8.0)
    noisy = noise(grey, 0.1, key=KEY, low=0, high=16)
    np.testing.assert_allclose(np.std(noisy), 1.6, rtol=0.03)
    assert float(noise(grey, 3.0, key=KEY, high=16).max()) == 16
    assert not jnp.array_equal(noisy, noise(grey, 0.1, key=jax.random.key(1), high=16))
    assert noise(grey.astype(jnp.bfloat16), 0.1, key=KEY, high=16).dtype == jnp.bfloat16


def test_levels_share_one_program():
    for fn in (blur, contrast):
        traces = []

        @jax.jit
        def run(images, level, fn=fn, traces=traces):
            traces.append(1)
            return fn(images, level)

        softer = [np.std(run(IMAGES, level)) for level in (0.3, 0.6, 0.9)]
        assert len(set(map(float, softer))) == 3
        assert traces == [1]


def test_logits_of_all_ways():
    seen = []

    def predict(x):
        seen.append(x)
        return x.reshape(len(x), -1)

    found = corrupted_logits(predict, IMAGES, key=KEY)
    assert {name: logits.shape for name, logits in found.items()} == dict.fromkeys(
        ("noise", "blur", "contrast"), (5, 3, 126)
    )
    # More of blur and of lost contrast: the pictures move further and further away.
    away = [float(jnp.abs(x - IMAGES).mean()) for x in seen]
    assert all(away[i : i + 5] == sorted(away[i : i + 5]) for i in (5, 10))
    again = corrupted_logits(predict, IMAGES, key=KEY)
    assert all(jnp.array_equal(found[name], again[name]) for name in found)


def test_errors():
    with pytest.raises(TypeError, match=r"floating, got uint8: divide pixels"):
        _ = noise(np.zeros((1, 2, 2), np.uint8), 0.1, key=KEY)
    with pytest.raises(ValueError, match=r"\(n, height, width, channels\); got \(2, 2\)"):
        _ = blur(jnp.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match="must be below high; got 1 and 0"):
        _ = corruptions(low=1, high=0)
