"""The main job of `examples/demo.py`: train a network on real images, prune it in several ways, report honestly."""
