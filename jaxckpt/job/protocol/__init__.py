"""The messages between processes, the connections that carry them, and the handshake with which processes find each other.

`messages` lists the messages, `grammar` tells who may send which message when, and `frames` converts them to bytes. A `link` sends and
receives them. In the `handshake` both sides prove that they belong to the job.
"""
