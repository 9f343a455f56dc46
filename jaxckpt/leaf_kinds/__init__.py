"""The kinds of leaves: one file for each, which holds everything that jaxckpt knows about leaves of that kind.

A *leaf* is a value that `jaxckpt.tree` does not take apart any further: an array, a number, a text. All other rooms treat leaves alike and
ask the kind of each one (`registry.kind_of`), looked up once per type. In the order of a save and of a restore:

==================== ============================================ =====================================================
method               asked by                                     what for
==================== ============================================ =====================================================
`owns`               `registry.kind_of`                           which kind a value is of
`refusal`            `saving`, `restoring`                        why a value cannot be a leaf, and what to do instead
`start`, `take`      `saving.snapshot`                            the content that is written
`is_global`          `saving.snapshot`                            whether the other processes have shards of it too
`describe`, `digest` `job.agree.leaves`                           what the processes of a job compare
`validate`           `restoring.reading`                          whether a stored leaf fits a target
`place`              `restoring.placement`                        how the new value is made
`is_same`            `registry.is_same`, for `tree.rebuilding`      two stored values for one object
`describe_stored`    `restoring.reading`, for errors              what is stored
`read`               `jaxckpt.reader`                             a value without a target
==================== ============================================ =====================================================

**A new kind of leaf** is a new file with a class derived from `kind.LeafKind`, and its line in the list of `registry`. A kind that must be
told from others in a checkpoint needs a note as well: a word that `jaxckpt.storage.item.notes` lists, because it is part of the format.

What several kinds share: `dtypes` (what can be stored), `contents` (arrays on the host), `on_devices` (arrays on devices), `fitting` and
`conversion` (stored numbers and the numbers of a target).
"""
