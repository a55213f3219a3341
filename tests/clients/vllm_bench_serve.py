"""`vllm bench serve`: the same code and flags. The `vllm` command itself does not start in the CPU build, which is
installed under another name.
"""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
