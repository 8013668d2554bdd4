"""funcopt in the registries of other libraries: one module for each, which imports that library.

Nothing is registered before its `register` is called.
"""
