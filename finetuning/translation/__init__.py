# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Translation (section 4.2): pairs of lines, training of Luna or any other encoder-decoder, beam search, BLEU."""
