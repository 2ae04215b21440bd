"""`python -m danet.ops` prints the entries of `danet.ops.info()`."""

from danet.ops.info import info

if __name__ == "__main__":
    for name, value in info().items():
        print(f"{name:<18} {value}")
