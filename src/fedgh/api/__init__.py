"""The Python door: what ``import fedgh`` offers. Each name loads only what it needs; see ``fedgh/__init__.py``."""
