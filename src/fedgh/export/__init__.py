"""Trained models to take away: out of a run's directory into plain PyTorch, or a file for other programs."""
