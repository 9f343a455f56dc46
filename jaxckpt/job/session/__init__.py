"""One call that several processes make together: their connections, and how all of them reach the same outcome."""
