import sys

from pipeline.cli import main

if __name__ == "__main__":  # a process that multiprocessing starts imports this file too
    sys.exit(main())
