"""What the benchmark commands measure and print."""
