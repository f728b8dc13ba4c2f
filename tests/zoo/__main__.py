"""`python -m tests.zoo` prints the table that stands in docs/works_with.md."""

from tests.zoo.table import printed

if __name__ == "__main__":
    print(printed())
