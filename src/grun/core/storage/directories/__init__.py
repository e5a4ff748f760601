"""What is known about directories of runs: what each job writes, what was written, their locks, and the room on the disk."""
