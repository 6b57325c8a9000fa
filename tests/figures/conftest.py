import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def figures_in_memory():
    plt.switch_backend("agg")
    yield
    plt.close("all")
