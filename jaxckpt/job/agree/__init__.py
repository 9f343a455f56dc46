"""The meeting that begins every call of a job: all processes are there, and mean the same, before anything is done.

`meeting.meet` holds it: process 0 as the `leader`, the others as a `member`. `leaves` describes what they bring, `comparison` compares it.
"""
