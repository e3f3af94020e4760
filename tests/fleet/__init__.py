"""A fleet of simulated agents at a real api-server: the real core and the real frames, thousands in one process."""
