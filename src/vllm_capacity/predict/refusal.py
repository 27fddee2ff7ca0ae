"""Why a deployment is not predicted."""


class Refusal(Exception):  # noqa: N818 (a verdict, not a failure)
    """The deployment is not described exactly, or vLLM would refuse it; carries one sentence."""
