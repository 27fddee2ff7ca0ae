"""What layers keep, and the plan of the KV cache that vLLM makes of it."""
