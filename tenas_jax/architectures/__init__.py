"""Architectures as masks: what a space is, their notation, enumeration and samples."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
