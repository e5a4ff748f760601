"""The process and its surroundings: progress of long work, libraries' own messages, threads, environment variables."""
