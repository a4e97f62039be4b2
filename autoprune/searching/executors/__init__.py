"""Where evaluations run: one file, one `concurrent.futures.Executor`."""
