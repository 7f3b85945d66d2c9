"""`python -m tf_infer` is `tf-infer`."""

import sys

from tf_infer.cli.main import main

sys.exit(main())
