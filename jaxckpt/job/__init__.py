"""Jobs of several processes: they agree about a call, and move pieces of arrays to and from the process that has the files.

This package does not use JAX's collectives. A save in the background runs beside the training step, and if two processes run their
collectives in different orders, they deadlock. Processes find each other through JAX's coordination service (one small key), and talk
over TCP.
"""
