"""`python -m metaserver`"""

from metaserver.main import main

main()
