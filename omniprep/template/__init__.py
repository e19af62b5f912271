"""Row → text runs → tokens: ms-swift 3.9.3's template, as pure functions."""
