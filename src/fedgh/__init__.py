"""FedGH: federated learning under gradient conflict (Gradient Harmonization, arXiv 2309.06692)."""

from fedgh import moved

__version__ = "0.1.0"

moved.install()
