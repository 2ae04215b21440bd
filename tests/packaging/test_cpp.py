"""The C++ library: built without torch and Python, and used by the program in examples/cpp."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "build_tools"))
from backend import find_tool  # noqa: E402


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )


def build(folder: Path, source: Path, *options: str) -> None:
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    configure = (cmake, "-S", source, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options)
    for command in (configure, (cmake, "--build", folder)):
        result = run(*command)
        assert result.returncode == 0, result.stdout + result.stderr


def check(program: Path, **environment) -> None:
    """Run the program, which compares the library with its own loops over the formula."""
    result = run(program, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["out", "grad_input", "grad_offset", "grad_mask"]


@pytest.mark.long
def test_cpp_example_matches_its_loops(tmp_path):
    build(tmp_path, ROOT / "examples/cpp", "-DINSTRUCTION_SET=baseline")  # compiling all takes a minute
    check(tmp_path / "sdc")


def test_cpp_unknown_instruction_set_error(tmp_path):
    result = run(find_tool("cmake"), "-S", ROOT, "-B", tmp_path, "-DCPP_LIBRARY=ON", "-DINSTRUCTION_SET=mmx")
    assert result.returncode != 0
    assert "INSTRUCTION_SET: must be one of baseline" in result.stderr


# float: with AVX2, the last bit of double's grad_input depends on the number of threads if the channels of a group do
# not fill a vector.
USER = """
#include <danet/sdc.h>
#include <cstdio>
#include <stdexcept>
#include <vector>

int main() {
  danet::SdcOptions o;
  o.N = 3, o.C = 10, o.H = 9, o.W = 7, o.groups = 2;
  const danet::SdcSizes s = danet::sdc_sizes(o);
  const int64_t rows = o.N * s.H_out, taps = rows * s.W_out * o.groups * s.K;
  std::vector<float> input(o.N * o.H * o.W * o.C), offset(2 * taps), mask(taps);
  for (size_t i = 0; i < input.size(); ++i) input[i] = float(i % 11) - 4;
  for (size_t i = 0; i < offset.size(); ++i) offset[i] = float(i % 7) / 2 - 1.3f;
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = float(i % 5);
  auto forward = [&](int threads) {
    std::vector<float> out(rows * s.W_out * o.C);
    danet::sdc_forward(o, input.data(), offset.data(), mask.data(), out.data(), threads);
    return out;
  };
  auto backward = [&](int threads) {
    std::vector<float> result(input.size() + 3 * taps, 7);
    float* grads = result.data();
    danet::sdc_backward(
        o, forward(1).data(), input.data(), offset.data(), mask.data(), grads, grads + input.size(),
        grads + input.size() + 2 * taps, threads);
    return result;
  };
  std::vector<float> by_rows(rows * s.W_out * o.C);
  for (int64_t row = 0; row < rows; ++row)
    danet::sdc_forward_rows(o, input.data(), offset.data(), mask.data(), by_rows.data(), row, row + 1);
  std::printf("%d %d %d\\n", by_rows == forward(5), forward(1) == forward(1000), backward(1) == backward(4));

  const std::vector<danet::Half*> none(4);  // an empty batch reads nothing
  o.N = 0;
  danet::sdc_forward<danet::Half>(o, none[0], none[1], none[2], none[3], 2);
  o.groups = 3;
  try {
    danet::sdc_forward(o, input.data(), offset.data(), mask.data(), by_rows.data());
  } catch (const std::invalid_argument& error) {
    std::printf("%s\\n", error.what());
  }
}
"""

PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(user LANGUAGES CXX)
find_package(Threads REQUIRED)
find_library(danet danet_cpp PATHS ${DANET} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH REQUIRED)
add_executable(user user.cpp)
target_compile_features(user PRIVATE cxx_std_17)
target_include_directories(user PRIVATE ${DANET}/include)
target_link_libraries(user PRIVATE ${danet} Threads::Threads)
"""


@pytest.mark.long
@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_cpp_installed_library_all_instruction_sets(tmp_path, shared):
    build(tmp_path / "build", ROOT, "-DCPP_LIBRARY=ON", f"-DBUILD_SHARED_LIBS={shared}")
    assert run(find_tool("cmake"), "--install", tmp_path / "build", "--prefix", tmp_path / "prefix").returncode == 0
    user = tmp_path / "user"
    user.mkdir()
    (user / "user.cpp").write_text(USER)
    (user / "CMakeLists.txt").write_text(PROJECT)
    build(user / "build", user, f"-DDANET={tmp_path / 'prefix'}")
    for capability in ("default", "avx2", "avx512"):
        result = run(user / "build/user", DANET_CPU_CAPABILITY=capability)
        assert result.stdout.splitlines() == ["1 1 1", "sdc: groups must divide C = 10, got 3"], capability
