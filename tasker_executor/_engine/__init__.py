"""The machinery of `ResourceExecutor`. Its imports point down only: see ``tests/test_layering.py``."""
