"""From text to verified, memory-mapped token datasets: `python -m data_tools --help`."""
