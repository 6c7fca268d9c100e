"""Benchmarks: payloads are made before the clock starts, and every received message is verified.

`worker` runs single operations in a process of its own, `measure` reads the clock, CPU, memory and
disk around them, `machine` says where it ran, `table1` sets up and interleaves the runs, `report`
prints.
"""
