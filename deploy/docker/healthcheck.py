"""Health check of the image: exit status 0 where `/readyz` of the command that runs answers 200.

    python -I healthcheck.py [PORT ...]

By default the ports of `twinspire gateway` and of the status of `twinspire serve`: of these one answers in a container.
"""

import sys
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PORTS = (8080, 8003)


def main(ports: list[int]) -> int:
    """Return 0 where the first port that answers is ready; say otherwise what was found."""
    found = []
    for port in ports:
        url = f"http://127.0.0.1:{port}/readyz"
        try:
            with urlopen(url, timeout=2) as answer:
                print(f"{url}: {answer.status}")
                return 0
        except HTTPError as error:
            print(f"{url}: {error.code} {error.read(1000).decode(errors='replace')}")
            return 1
        except (URLError, OSError) as error:
            found.append(f"{url}: {error}")
    print(*found, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]] or list(PORTS)))
