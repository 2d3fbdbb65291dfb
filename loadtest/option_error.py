"""A mistake in what a run or an upload was told to do. A leaf: whoever reads an option's text raises it."""


class OptionError(ValueError):
    """An option is wrong; the text names it and says what would be right."""
