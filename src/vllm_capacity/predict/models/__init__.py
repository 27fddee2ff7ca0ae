"""Which class of vLLM's models is built how: one module for each family, found by ``registry``."""
