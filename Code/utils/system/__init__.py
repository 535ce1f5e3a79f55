"""The machine: devices and memory, several processes, files, signals, output, and errors."""
