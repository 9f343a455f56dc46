"""What processes say to each other: the `messages`, who may say which of them when (`grammar`), and their bytes (`frames`).

A `link` carries them. `handshake` is how processes find each other, and prove who they are.
"""
