"""Messages between processes, the connections that carry them, and how processes find each other."""
