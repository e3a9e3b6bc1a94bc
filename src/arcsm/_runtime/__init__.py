"""The package's interface to the machine: devices, randomness, memory, threads, processes, signals, files, progress."""
