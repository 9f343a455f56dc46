"""Interrupts at random moments: real signals while checkpoints are saved and restored, and what may be left of them.

``python -m tests.interrupts --tries 5000`` runs programs whose working directory, its parent and home hold precious files, and
interrupts them, again and again. After every try it looks for what must never be: see `model`. Jobs of three processes are among them
(``job-...``), and programs that the signal ends (``end-...``): the next program looks at what they left. Everything happens in child
processes below one temporary directory, so that code that deletes its working directory can delete nothing else.
"""
