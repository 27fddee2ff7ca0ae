"""The screen of ``vllm-capacity top``: status documents in, lines of text out; no clock, no I/O."""
