"""One call that several processes make together: their connections, and how all of them reach the same outcome.

The process that does the file access has a `center`, each other process a `peer`. `failures` carries errors from one process to another.
"""
