"""The event loop around the core: named loops that feed it events and carry out its instructions."""
