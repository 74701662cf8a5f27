"""What is on disk: where a store lies, who may write it, what is in it, and whether that is what
was written.
"""
