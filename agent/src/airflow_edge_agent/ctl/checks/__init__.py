"""The checks of ``edgectl doctor``."""
