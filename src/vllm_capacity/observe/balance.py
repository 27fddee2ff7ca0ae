"""One sum of tokens in flight, known twice: from the counters, and from who is in the book.

Counters keep their balance exactly as long as everybody finishes. Whoever hangs up leaves with
tokens that must be guessed, and that mistake stays in the balance until the engine is idle. The
book forgets it as those leave whom it concerned. So the two are averaged by what each is worth.
"""


class Balance:
    """The sum over everybody past the first token, and how far either account may be off.

    Attributes:
        tokens: by the counters, less what those who hung up are thought to have had.
        missing_tokens: of them, what nobody in the book is known to have; negative: too many are.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._counted_variance = 0.0
        self._book_variance = 0.0
        self.missing_tokens = 0.0

    def doubt_counters(self, deviation_tokens: float) -> None:
        """Somebody left who had so many tokens more or less than was thought."""
        self._counted_variance += deviation_tokens * deviation_tokens

    def doubt_book(self, deviation_tokens: float) -> None:
        """The book may have taken out another than the one who left."""
        self._book_variance += deviation_tokens * deviation_tokens

    def forget(self, stay_ratio: float) -> None:
        """Of those in the book that share stays; the others took their errors with them."""
        self._book_variance *= stay_ratio * stay_ratio

    def settle(self, book_tokens: float) -> float:
        """The best estimate of the sum, given what the book adds up to."""
        book_tokens += self.missing_tokens  # what nobody in the book is known to have
        if self._counted_variance > 0:
            both = self._counted_variance + self._book_variance
            share = self._book_variance / both
            self.tokens = book_tokens + share * (self.tokens - book_tokens)
            self._counted_variance = self._book_variance = self._counted_variance * share
        return self.tokens

    def miss(self, book_tokens: float) -> None:
        """Remember how much of the sum nobody in the book is known to have."""
        self.missing_tokens = self.tokens - book_tokens
