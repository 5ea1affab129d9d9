from .recorder import Histogram

__all__ = ["Histogram"]
