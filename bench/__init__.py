"""Benchmarks: every op beside what a user would pick instead, and encoders end to end.

`taut bench` runs them in several processes, one after the other; a file alone, in one:
`python -m pytest bench/bench_norm.py [--quick]`. Start at cases.py, which says what a case is, and
runner.py, which measures it; session.py runs them in a process, merge.py joins what several found.
"""
