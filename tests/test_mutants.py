"""Placeholder for the moment."""
def test_nothing() -> None:
    pass
