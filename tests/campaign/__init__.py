"""Break everything that can break, and let the checker say what it cost.

make campaign                                  # the whole matrix, about an hour
make campaign CAMPAIGN="--minutes 1 --kills 5"  # a look
"""
