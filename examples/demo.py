"""Train a CNN on real images, prune it in several ways, and compare; or evaluate what an earlier run saved.

    python examples/demo.py                                    digits of scikit-learn, about two minutes on two cores
    python examples/demo.py --data-dir FOLDER                  MNIST or the like, as four IDX files
    python examples/demo.py --dataset fashion_mnist            from the catalogue of tensorflow-datasets
    python examples/demo.py --model nnx --seed 1 --output new  the network in NNX, another seed, a folder of your choice
    python examples/demo.py --evaluate new/checkpoints/gradual-95

What pruning takes is in `main_job/methods.py`: one line of the optimizer. The rest is what any training needs.
"""

import sys

from main_job.command import main

if __name__ == "__main__":
    sys.exit(main())
