"""The survival matrix: what becomes of a running task when something around it, or in it, goes wrong."""
