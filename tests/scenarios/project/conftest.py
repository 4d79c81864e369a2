"""What every test of the project starts from."""

import pytest


@pytest.fixture(scope="session")
def r2d2_image(r2d2_build):
    def provision(c):
        c.run(["mkdir", "-p", "/srv/app"], check=True)
        c.path("/srv/app/index.html").write_text("<h1>shop</h1>\n")
        c.path("/etc/app.conf").write_text("workers = 4\n")

    return r2d2_build("host", provision)
