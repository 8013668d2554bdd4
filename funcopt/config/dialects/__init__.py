"""The spellings that configs come in, a module each: what belongs to one stands in no other.

A module tells whether a config is its own (`matches`) and reads it into an `OptimizerSpec` (`read`), and a schedule
(`read_schedule`). None builds an optimizer. What is torch's own comes as live objects and names instead.
"""
