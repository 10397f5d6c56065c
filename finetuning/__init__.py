# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Fine-tuning of Luna, and of any other Auto model, on GLUE, RACE, CommonsenseQA and your own data."""
