from .resources import ResourcePool as Reserve

__all__ = ["Reserve"]
