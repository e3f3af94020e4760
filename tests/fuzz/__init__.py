"""Nonsense for both ends of the wire: raw bytes, damaged frames, frames that are nearly right.

``make fuzz`` runs a million frames, a sample of it is among the tests. Nothing may crash, answer with a fault of the
server, or grow.
"""
