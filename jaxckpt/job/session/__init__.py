"""One call that several processes make together: who is connected to whom, and how all of them reach one outcome."""
