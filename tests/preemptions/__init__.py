"""SIGTERM at random moments: what a program that uses `jaxckpt.PreemptionCheckpointHandler` has saved when it has ended.

``python -m tests.preemptions --tries 100 --processes 4`` starts a program that trains, or a job of four processes, sends SIGTERM to one
process at a random moment (before the first step, in a step, during a save in the background), waits for its end and looks: the status
is 143, every step that was completed is saved, with the right values, and nothing is left over. The next program goes on from there.
"""
