"""``edgectl``, for operators. What must be quick loads nothing but the standard library."""
