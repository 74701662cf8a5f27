"""One module for each question that can be asked of a capture.

Each has `compute(capture, ...)`, which returns a Dataset, and `plot(dataset)`, which returns a
figure. The command line finds them by their entry points (group `repsim.analyses`), so another
package can add its own.
"""
