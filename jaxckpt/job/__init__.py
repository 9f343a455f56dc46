"""Jobs of several processes: agreeing about a call, and moving pieces of arrays to and from the process that holds the files.

Nothing here uses a collective of JAX: a save in the background runs beside the collectives of the training step, and two orders of
collectives on two processes are a deadlock. Processes find each other through JAX's coordination service (one small key), and talk
over TCP.
"""
