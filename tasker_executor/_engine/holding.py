from .resources import Holding, is_in_use

__all__ = ["Holding", "is_in_use"]
