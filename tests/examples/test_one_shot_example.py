"""One-shot pruning of ResNet-20 runs to its end on a few images, and removes what it says."""

import json

import pytest


@pytest.mark.slow
def test_resnet20(run, real_data, tmp_path):
    folder = real_data("resnet20_cifar10/weights.npz").parents[1]
    _ = real_data("cifar10_jpeg/half_a_5000.npz")
    out = run("one_shot_resnet20.py", "--data", folder, "--output", tmp_path, "--sparsities", 0.7, "--test", 500)
    rows = {line.split()[1]: line.split() for line in out.splitlines()[2:]}
    assert list(rows) == ["dense", "uniform", "ERK", "LAMP", "global"]
    # All weights of convolutions and of the classifier of a ResNet-20 with option A shortcuts, by hand.
    weights = 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 640
    for name, row in rows.items():
        # Each of the 20 leaves is rounded by itself, where they are not ranked together.
        assert abs(int(row[2]) - 0.3 * weights) <= (0.5 if name == "global" else 10) or name == "dense"
    accuracy = {name: float(row[3]) for name, row in rows.items()}
    # Standard errors are 0.02: dense is far above, and so is global above uniform.
    assert accuracy["dense"] > accuracy["global"] + 0.1 > accuracy["uniform"] + 0.2
    assert (tmp_path / "one_shot.png").stat().st_size > 5000
    assert len(json.loads((tmp_path / "one_shot.json").read_text())) == 5
