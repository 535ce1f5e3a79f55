"""Data sets: `load` one, as real images on a device."""

from .real_data import RealData, load, load_data

__all__ = ["RealData", "load", "load_data"]
