"""What may be a secret is told by its name or its form, and is never shown.

The second line of defence: where arguments are kept at all, an allow-list decides
(``observe/startup_args.py``); this is for sentences, such as errors, that hold what others wrote.
"""

import re

#: Stands for what is not shown, as in vLLM's own log (``entrypoints/serve/utils/api_utils.py``).
HIDDEN = "***"

_NAME = (
    r"(?:(?:[\w.]{0,60}[_.-])?(?:token|password|passwd|passphrase|pwd|secret|credentials?|bearer"
    r"|api[ _-]?keys?|access[_-]?keys?(?:[_-]id)?|secret[_-]?keys?|private[_-]?keys?|auth"
    r"|authorization|sas|signature)"
    r"|watermark[_-]config)"
)
_SECRET_NAME = re.compile(r"-{0,2}" + _NAME, re.IGNORECASE)
_QUOTED = r"\"(?:[^\"\\]|\\.){0,2000}\"?|'(?:[^'\\]|\\.){0,2000}'?"
_LIST = r"\[[^\]]{0,2000}\]?"
_VALUE = rf"(?:{_LIST}|{_QUOTED}|[^\s,;)}}\]&\"']+)"
_WORD = r"[^\s\"',;/]"
# A word that is none of a sentence, which has letters alone, or digits alone.
_ODD_WORD = rf"(?={_WORD}{{0,99}}[A-Za-z])(?={_WORD}{{0,99}}\d){_WORD}{{8,}}"
_NAMED = (
    # --api-key X   api_key=X   'api_key': 'X'   API_KEY=X   --config.token X   with token X
    rf"((?<![\w-])-{{1,2}}{_NAME}(?:\s{{0,3}}=\s{{0,3}}|\s{{1,9}}))(?!\s){_VALUE}",
    rf"((?<![A-Za-z0-9]){_NAME}\\?[\"']?\s{{0,3}}=\s{{0,3}}\\?)(?!\s){_VALUE}",
    rf"((?<![A-Za-z0-9]){_NAME}\\?[\"']?\s{{0,3}}:\s{{0,3}}\\?)(?:{_LIST}|{_QUOTED})",
    rf"((?<![A-Za-z0-9]){_NAME}[\"']?:? {{1,9}}[\"']?){_ODD_WORD}",
)
_NAMED_SECRETS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _NAMED)
_FORMS = re.compile(
    r"(?-i:\bhf_(?=[a-z]*[A-Z0-9]|[a-z]{14})[A-Za-z0-9]{8,})"
    r"|\b(?:gh[opsu]_|glpat-|xox[abprs]-|nvapi-|github_pat_)[A-Za-z0-9_-]{8,}"
    r"|\bsk-[A-Za-z0-9_-]{4,}"
    r"|\bAKIA[A-Z0-9]{12,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"
    r"|(?<=://)[^/\s@\"']{1,500}(?=@)"
    r"|(?-i:(?<=Bearer )[^\s\"',]+|(?<=Basic )[A-Za-z0-9+/=]{8,})"
    r"|(?<=Signature=)[^\s&\"']+|(?<=sig=)[^\s&\"']+",
    re.IGNORECASE,
)


# argparse repeats what it does not know whole: a mistyped flag, and the secret behind it.
_UNKNOWN = re.compile(r"(unrecognized arguments: )([^\n]+)")


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret: ``api_key``, ``--hf-token``, ``AWS_SECRET_KEY``."""
    return _SECRET_NAME.fullmatch(name) is not None


def without_secrets(text: str) -> str:
    """Text with tokens, keys, passwords and credentials in it made unreadable.

    Known by the name before them (``--api-key X``, ``"token": "X"``, ``HF_TOKEN=X``) or by their
    form (``hf_…``, ``sk-…``, ``https://user:password@…``).
    """
    text = _UNKNOWN.sub(lambda match: match[1] + _flags_alone(match[2]), text)
    text = _FORMS.sub(HIDDEN, text)
    for named in _NAMED_SECRETS:
        text = named.sub(rf"\1{HIDDEN}", text)
    return text


def _flags_alone(words: str) -> str:
    flags = (word.partition("=")[0] for word in words.split() if word.startswith("-"))
    return " ".join(flags) or HIDDEN
