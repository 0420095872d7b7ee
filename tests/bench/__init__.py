"""Measures the launcher beside what people would use instead: bash tests/bench/run.sh"""
