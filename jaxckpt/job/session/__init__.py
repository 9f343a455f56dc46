"""One call that several processes make together: who is connected to whom, and how all of them reach one outcome.

The process that does the file access has a `center`, the others have a `peer`. `failures` carries an error from one process to the others.
"""
