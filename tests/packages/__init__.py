"""The packages, installed, upgraded and removed on machines of their own."""
