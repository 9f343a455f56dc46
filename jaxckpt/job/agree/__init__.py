"""The meeting at the beginning of a call: the processes of a job compare their calls and their leaves before anything is done.

`meeting.meet` holds the meeting. Process 0 is the `leader`, each other process a `member`. `leaves` describes the leaves of a process, and
`comparison` compares them.
"""
