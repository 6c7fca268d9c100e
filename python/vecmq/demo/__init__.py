"""The demonstration: real embeddings through both routes of one topic, every bit verified.

`vectors` computes them, `plan` says what is published in which order, `ledger` notes what was
acknowledged, `check` compares what was received with the plan, `run` puts them together, `show`
prints the result.
"""
