"""The measurements and reports of the benchmark commands."""
