"""The kinds of leaves. Each kind has one file, which holds everything that jaxckpt knows about leaves of that kind.

A *leaf* is a value that `jaxckpt.tree` does not take apart any further: an array, a number, a text. All other rooms treat leaves alike and
ask the leaf's kind (`registry.kind_of`, looked up once per type). In the order of a save and of a restore:

==================== ============================================ =====================================================
method               asked by                                     question
==================== ============================================ =====================================================
`owns`               `registry.kind_of`                           whether a value is of this kind
`refusal`            `saving`, `restoring`                        why a value cannot be a leaf, and the way out
`start`, `take`      `saving.snapshot`                            the content to write
`is_global`          `saving.shards`                              whether other processes hold shards of it too
`form`               `job.structures`                             what tells a structure that is known from another one
`describe`, `digest` `job.agree.leaves`                           texts that the processes of a job compare
`traits`             `restoring.alike`                            which targets `validate` and `place` need not tell apart
`validate`           `restoring.reading`                          whether a stored leaf fits a target
`place`              `restoring.placement`                        how the new value is made
`is_same`            `registry.is_same`, for `tree.rebuilding`    whether two stored values for one object are equal
`describe_stored`    `restoring.reading`, for errors              a stored leaf in words
`read`               `restoring.untargeted`                       a value without a target
==================== ============================================ =====================================================

**To add a kind of leaf**, write a new file with a class derived from `kind.LeafKind`, and add its line to the list in `registry`. If a
checkpoint must tell its leaves from leaves of other kinds, the kind also needs a *note*: a word that is stored with the leaf. Notes are
listed in `jaxckpt.storage.item.notes`, because they are part of the format.

Shared by several kinds: `dtypes` (which dtypes can be stored), `contents` (arrays on the host), `on_devices` (arrays on devices),
`fitting` and `conversion` (whether stored numbers fit a target, and how they get its dtype).
"""
