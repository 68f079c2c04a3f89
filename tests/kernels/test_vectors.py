"""The elementwise functions of float vectors, by a small program that is built as the kernels are."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest

from dreamer_torchrl.kernels import compiling as build
from tests.kernels.compilers import a_compiler, needs_compiler

pytestmark = needs_compiler
PROGRAM = """
#include <math.h>
#include <stdio.h>
#define VECTOR_BYTES 16
#define LANES 4
typedef float real;
typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
#include "math_float.h"

/* Difference in units of the last place of the exact number. */
static double places(float found, double exact) {
    int exponent;
    frexp(exact, &exponent);
    return fabs(found - exact) / ldexp(1, exponent - 24 > -149 ? exponent - 24 : -149);
}

int main(void) {
    double first = 0, second = 0;
    for (double at = -86.9; at < 87.9; at += 1e-3) {
        const Vector x = {at, at + 1.1e-4, at + 4.7e-4, at / 700}, y = exponential(x);
        for (int i = 0; i < LANES; i++) first = fmax(first, places(y[i], exp(x[i])));
    }
    for (double at = 1e-30; at < 100; at *= 1.0003) {
        const Vector x = {at, -at, at * 1.0001, -at * 1.0002}, y = hyperbolic_tangent(x);
        for (int i = 0; i < LANES; i++) second = fmax(second, places(y[i], tanh(x[i])));
    }
    printf("%f %f\\n", first, second);
    const Vector x = {NAN, INFINITY, -INFINITY, 0}, y = exponential(x), z = hyperbolic_tangent(x);
    for (int i = 0; i < LANES; i++) printf("%g %g\\n", y[i], z[i]);
}
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """What the program found, line by line."""
    place = tmp_path_factory.mktemp("vectors")
    (place / "program.c").write_text(PROGRAM)
    flags = [flag for flag in build.COMMON if flag not in ("-shared", "-fPIC")]
    command = [a_compiler(), *flags, f"-I{Path(build.__file__).parent / 'csrc'}", "program.c", "-o", "program", "-lm"]
    subprocess.run(command, cwd=place, check=True, timeout=100)
    lines = subprocess.run([place / "program"], capture_output=True, text=True, check=True, timeout=100).stdout
    return [[float(number) for number in line.split()] for line in lines.splitlines()]


def test_they_are_exact_to_two_units_of_the_last_place(printed: list[list[float]]) -> None:
    """Measured: 1.02 for the exponential and 1.30 for the hyperbolic tangent."""
    (exponential, tangent), *_ = printed
    assert 0.5 < exponential < 1.1
    assert 0.5 < tangent < 1.4


def test_their_ends(printed: list[list[float]]) -> None:
    """What is no number stays so; the exponential ends at numbers whose product with a usual one is still finite."""
    _, nothing, large, small, zero = printed
    assert all(math.isnan(number) for number in nothing)
    assert 1e38 < large[0] < 3e38 and large[1] == 1
    assert 1e-38 < small[0] < 2e-38 and small[1] == -1
    assert zero == [1, 0]
