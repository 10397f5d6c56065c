# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
