// The kernels of seeded.cu by name.
#pragma once

#include <functional>
#include <vector>

namespace danet {

// A kernel that runs correctly or with its seeded bug, and returns whether its results are correct.
struct SeededCase {
  const char* name;
  std::function<bool(bool bug)> run;
};
std::vector<SeededCase> seeded_cases();

}  // namespace danet
