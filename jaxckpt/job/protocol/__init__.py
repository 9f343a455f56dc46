"""The messages between processes, the connections that carry them, and the handshake with which processes find each other."""
