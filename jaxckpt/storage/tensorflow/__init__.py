"""Reads TensorFlow's checkpoints (TensorBundles, its V2 format) without TensorFlow.

A checkpoint ``ckpt-3`` is the file ``ckpt-3.index`` and data files such as ``ckpt-3.data-00000-of-00001``. The index is a table of
LevelDB (`table`) of messages of Protocol Buffers (`wire`), one for each tensor (`index`): its type (`types`), its shape, and its place or
the slices in which it is stored (`slices`). `bundle` reads tensors. One tensor is the object graph (`graph`), which gives variables their
names. `source` makes of all this a checkpoint to restore from.
"""
