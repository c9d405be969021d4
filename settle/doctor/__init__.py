"""What `settle doctor` looks at: what keeps the stack from starting, and what ails a running one.

Each module holds the checks of one thing, with the thresholds by which it judges; `examination`
puts them together. A check gives one line, and says what to do when it is bad.
"""
