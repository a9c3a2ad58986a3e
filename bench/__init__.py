"""Benchmarks: every op beside what a user would pick instead, and encoders end to end.

`taut bench` runs them; a file alone: `python -m pytest bench/bench_norm.py [--quick]`. Start at
cases.py, which says what a case is, and runner.py, which measures it.
"""
