"""What the package needs of the machine: devices, randomness, memory, threads, processes, signals, files, progress."""
